"""Imports run one way, and the planner never loads anything heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import builder

ROOT = Path(builder.__file__).parent
STDLIB_ONLY = {"blake3"}  # what core may import besides
ARROWS = {  # room -> the rooms of builder it may import
    "core": {"core"},
    "executors": {"executors", "core", "remote"},
    "remote": {"remote", "core"},
    "architectures": {"architectures", "core"},
    "formats": {"formats", "core"},
    "quant": {"quant", "architectures", "core", "formats"},
    "ops": {"ops", "quant", "architectures", "core"},
    "targets": {"targets", "core"},
    "models": {"models", "architectures", "ops", "quant", "core"},
    "lowering": {"lowering", "ops", "quant", "targets", "formats", "core"},
    "runtime": {"runtime", "formats", "targets", "core"},
    "verification": {"verification", "formats", "quant", "architectures", "runtime", "core"},
    "steps": {
        "steps",
        "models",
        "ops",
        "quant",
        "lowering",
        "targets",
        "formats",
        "runtime",
        "architectures",
        "verification",
        "core",
    },
    "report": {"report", "core"},
    "config": {"config", "core"},
}
USERS = {  # package -> the only files that import it; of TVM what it is moving
    "cryptography": {"provenance/signing.py"},
    "fsspec": {"remote/bucket.py"},
    "tvm.relax.frontend.nn.llm.kv_cache": {"ops/kv_cache.py"},
    "tvm.script.ir_builder": {"lowering/schedules/ir.py"},
    "tvm.tirx.script": {"lowering/schedules/ir.py"},
}
HEAVY = ("fsspec", "tvm", "torch", "transformers", "ray", "numpy", "hydra", "rich", "omegaconf")


def imports_of(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} if node.module != "builder" else {f"builder.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_arrows():
    wrong = []
    for package, allowed in ARROWS.items():
        for file in (ROOT / package).rglob("*.py"):
            used = {m.split(".")[1] for m in imports_of(file) if m.startswith("builder.") and m.count(".")}
            wrong += [f"{file.relative_to(ROOT)} imports builder.{name}" for name in sorted(used - allowed)]
    assert not wrong, "\n".join(wrong)


def test_core_is_standard_library_only():
    names = set(sys.stdlib_module_names) | STDLIB_ONLY | {"builder"}
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
        "import sys; import builder.__main__, builder.planner.graph.graph, builder.planner.resolve, "
        "builder.config.compose, builder.cli.build, builder.cli.plan, builder.core.run, "
        "builder.app.build, builder.app.plan, builder.app.export, builder.executors.local; "
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
