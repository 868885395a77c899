"""Imports run one way, and the planner never loads anything heavy."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import llm_build
from tools.rooms import DATA, ROOMS, with_picture

ROOT = Path(llm_build.__file__).parent
REPOSITORY = Path(__file__).resolve().parents[2]
STDLIB_ONLY = {"blake3"}  # what core may import besides
USERS = {  # package -> the only files that import it; of TVM what it is moving
    "cryptography": {"provenance/signing.py", "remote/signatures.py"},
    "fsspec": {"remote/bucket.py"},
    "tvm.relax.frontend.nn.llm.kv_cache": {"ops/kv_cache.py"},
    "tvm.script.ir_builder": {"lowering/schedules/ir.py"},
    "tvm.tirx.script": {"lowering/schedules/ir.py"},
}
HEAVY = ("fsspec", "tvm", "torch", "transformers", "ray", "numpy", "hydra", "rich", "omegaconf")


def files() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.py")) if path.relative_to(ROOT).parts[0] not in DATA]


def name_of(file: Path) -> str:
    """llm_build.app.build; a package by its own name."""
    return ".".join(("llm_build", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")


@cache
def imports_of(file: Path) -> frozenset[str]:
    """Modules that a file imports anywhere, in functions and for types too; of a package's members those that are
    modules."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            modules |= {_module_of(str(node.module), alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return frozenset(modules)


def _module_of(package: str, member: str) -> str:
    path = ROOT.parent.joinpath(*package.split("."), member)
    inside = package.split(".", maxsplit=1)[0] == "llm_build" and (path.is_dir() or path.with_suffix(".py").is_file())
    return f"{package}.{member}" if inside else package


def room_of(module: str) -> str:
    """ "" for llm_build and llm_build.__main__."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else ""


def arrows() -> dict[tuple[str, str], list[str]]:
    """{(room, another room that it imports): where}."""
    found: dict[tuple[str, str], list[str]] = {}
    for file in files():
        for module in imports_of(file):
            pair = room_of(name_of(file)), room_of(module)
            if module.startswith("llm_build.") and pair[0] != pair[1]:
                found.setdefault(pair, []).append(f"{file.relative_to(ROOT)} imports {module}")
    return found


def test_every_folder_is_a_room_and_no_file_lies_loose():
    folders = {
        path.relative_to(ROOT).parts[0] for path in ROOT.glob("*/**/*") if path.suffix != ".pyc" and path.is_file()
    }
    assert folders == {*ROOMS, *DATA} - {""}
    loose = {path.name for path in ROOT.iterdir() if path.is_file()}
    assert loose == {"__init__.py", "__main__.py", "py.typed"}


def test_rooms_import_what_the_table_allows():
    wrong = [
        place for (room, other), places in arrows().items() if other not in ROOMS[room].imports for place in places
    ]
    assert not wrong, "\n".join(["not in the table of tools/rooms.py:", *wrong])


def test_no_two_rooms_import_each_other_and_arrows_point_down():
    below = list(ROOMS)
    for room, (_, imports) in ROOMS.items():
        up = [other for other in imports if below.index(other) <= below.index(room)]
        assert not up, f"{room} imports {up}, which is not below it"
    both = [pair for pair in arrows() if pair[::-1] in arrows()]
    assert not both


def test_no_circle_of_files():
    modules = {name_of(file): imports_of(file) for file in files()}
    try:
        TopologicalSorter({name: imports & modules.keys() for name, imports in modules.items()}).prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(reversed(error.args[1]))) from None


def test_a_circle_and_a_pair_in_both_directions_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where the import is inside a function, or for types alone."""
    for path, text in {
        "core/a.py": "def f():\n    from llm_build.config import b\n",
        "config/b.py": "if TYPE_CHECKING:\n    from llm_build.core.a import f\n",
    }.items():
        (tmp_path / "llm_build" / path).parent.mkdir(parents=True)
        (tmp_path / "llm_build" / path).write_text(text)
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path / "llm_build")
    assert set(arrows()) == {("core", "config"), ("config", "core")}
    with pytest.raises(AssertionError, match=re.escape("core/a.py imports llm_build.config.b")):
        test_rooms_import_what_the_table_allows()
    with pytest.raises(AssertionError, match=r"llm_build\.\w+\.[ab] -> llm_build"):
        test_no_circle_of_files()


def test_the_readme_has_the_picture_of_the_table():
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    assert with_picture(readme) == readme, "the README is not current: python -m tools.rooms"


def test_core_is_standard_library_only():
    names = set(sys.stdlib_module_names) | STDLIB_ONLY | {"llm_build"}
    wrong = {
        f"{file.name}: {module}"
        for file in (ROOT / "core").rglob("*.py")
        for module in imports_of(file)
        if module.split(".")[0] not in names
    }
    assert not wrong


def test_only_the_compose_side_imports_hydra():
    users = {
        f.relative_to(ROOT).as_posix()
        for f in ROOT.rglob("*.py")
        if any(m.split(".")[0] == "hydra" for m in imports_of(f))
    }
    assert users == {
        f"config/{name}.py" for name in ("compose", "from_hydra", "hydra_plugins", "run_hydra", "sweeps/batch")
    }


def test_what_one_file_keeps_to_itself():
    for package, files in USERS.items():
        users = {
            f.relative_to(ROOT).as_posix()
            for f in ROOT.rglob("*.py")
            if any(f"{module}.".startswith(f"{package}.") for module in imports_of(f))
        }
        assert users == files, package


def test_the_planning_side_loads_nothing_heavy():
    code = (
        "import sys; import llm_build.__main__, llm_build.planner.graph.graph, llm_build.planner.resolve, "
        "llm_build.config.compose, llm_build.cli.build, llm_build.cli.plan, llm_build.core.run, "
        "llm_build.app.build, llm_build.app.plan, llm_build.app.export, llm_build.executors.local; "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
