"""Which files are in the key of each step: for a recipe of each kind of target, and after an edit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.core.filestore import FileStore
from llm_build.core.fingerprint import FileSources
from llm_build.core.step import Step
from llm_build.lowering.kernel_modules import BACKENDS, KERNELS, optional_passes
from llm_build.planner import resolve
from llm_build.planner.graph import graph
from llm_build.targets import apple, cuda, link, webgpu
from tests.conftest import ROOT
from tests.planning.code_table import CONFIGS, ONLY, RECIPES, ROOMS
from tests.weights.weights_line import write_tensors

PACKAGE = ROOT / "builder"


def write_checkpoint(folder: Path, family: str) -> Path:
    """As much of a checkpoint as a plan reads: its config.json, and a file of weights."""
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": family, **CONFIGS[family]}))
    write_tensors(folder / "model.safetensors", {"weight": ("F16", np.zeros(4, np.float16))})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(PACKAGE / "demo" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {family: write_checkpoint(folder / family, family) for family in CONFIGS}


@pytest.fixture(autouse=True)
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans do not hang on what this machine has."""
    for module, identity in {link: "ld:1", cuda: "nvcc 13.0", apple: "metal"}.items():
        monkeypatch.setattr(module, "identity", lambda found=identity: found)
    monkeypatch.setattr(webgpu, "identity", lambda: {"emscripten": "3.1.6", "headers": "sha256:0"})


def steps_of(family: str, words: list[str], checkpoints: dict[str, Path]) -> list[Step]:
    overrides = ["model=auto", f"model.source={checkpoints[family]}", "verify=off", *words]
    folders = find_folders()
    plan = graph.build_plan([resolve.resolve(compose.compose(overrides, None), folders)])
    return list(plan.steps.values())


def files_of(step: Step, store: Path) -> set[str]:
    """Paths in builder/ behind the step's key."""
    _, table = FileSources(FileStore(store)).code(step.function, step.code)
    return {name.removeprefix("llm_build/") for name in table}


@pytest.mark.parametrize("name", RECIPES)
def test_a_key_holds_no_other_code_than_the_table_says(name: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    family, words = RECIPES[name]
    files = {step.name: files_of(step, tmp_path) for step in steps_of(family, words, checkpoints)}
    special = [pattern for pattern, recipes in ONLY.items() if name in recipes]
    for step, own in files.items():
        allowed = [*ROOMS[step], *(special if step == "lower" else ())]
        assert not [file for file in sorted(own) if not _matches(file, allowed)], step
    here = {pattern for pattern in ONLY if any(fnmatch(file, pattern) for file in files["lower"])}
    assert here == set(special)


def _matches(file: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(file, pattern) for pattern in patterns)


def test_every_kernel_is_in_the_file_of_its_operator() -> None:
    """What makes a key whole: kernels are found by operator, keys by file."""
    for machine, table in KERNELS.items():
        for operator, kernel in table.items():
            module, _, function = kernel.partition(":")
            assert function == operator
            assert operator in (PACKAGE / "ops" / f"{module}.py").read_text(), f"{operator} is not of ops/{module}.py"
            assert f"def {operator}(" in (PACKAGE / "lowering" / "schedules" / machine / f"{module}.py").read_text()


def test_one_rank_on_a_cpu_needs_no_optional_pass() -> None:
    assert [kind for kind in BACKENDS if optional_passes(kind, 1)] == ["cuda"]
    assert optional_passes("cpu", 2) == ("cut_weights",)


# ---------------------------------------------------------------- what a lower really loads

NO_BYTES = {"llm_build.core.errors"}  # loaded, and no part of what is computed: errors are for people
LOWER = """
import json, sys
from pathlib import Path
from llm_build.steps import lower
class Out:
    path = staticmethod(lambda name: Path(sys.argv[2], name))
    fact = warn = progress = staticmethod(lambda *_: None)
lower.run(json.loads(sys.argv[1]), {}, Out())
print(json.dumps(sorted(name for name in sys.modules if name.split(".")[0] == "llm_build")))
"""


@pytest.mark.parametrize("name", ["cpu llama", "cpu mixtral", "cpu w8a8", "webgpu"])
def test_a_lower_loads_no_code_that_its_key_has_not(
    name: str, checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # the programs of this machine are those that it really runs with
    family, words = RECIPES[name]
    (step,) = (step for step in steps_of(family, words, checkpoints) if step.name == "lower")
    command = [sys.executable, "-c", LOWER, json.dumps(dict(step.params)), str(tmp_path)]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT / "tools" / "path")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    declared = {module_of(file) for file in files_of(step, tmp_path / "store")}
    assert set(json.loads(done.stdout)) - declared <= NO_BYTES


def module_of(file: str) -> str:
    return ".".join(["llm_build", *Path(file.removesuffix("/__init__.py").removesuffix(".py")).parts]).removesuffix(
        ".__init__"
    )


# ---------------------------------------------------------------- after an edit, through `build plan`

FAMILIES = ("llama", "gemma2", "mixtral")
EDITS: dict[str, set[tuple[str, str]]] = {  # edited file -> libraries that become stale: (family, target)
    "lowering/schedules/gpu/gemv.py": {("llama", "webgpu"), ("gemma2", "webgpu"), ("mixtral", "webgpu")},
    "lowering/schedules/cpu/experts.py": {("mixtral", "cpu")},
    "lowering/schedules/cpu/linear.py": {("llama", "cpu"), ("gemma2", "cpu"), ("mixtral", "cpu")},
    "ops/gemma.py": {("gemma2", "cpu"), ("gemma2", "webgpu")},
    "targets/webgpu.py": {("runtime", "webgpu")},
}


def copy_package(folder: Path) -> Path:
    for name, copy in (("builder", "llm_build"), ("conf", "conf")):
        shutil.copytree(ROOT / name, folder / copy, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def plan(root: Path, words: list[str], store: Path) -> dict[str, Any]:
    """`build plan` of the package in ``root``."""
    environment = {**os.environ, "PYTHONPATH": str(root), "LLM_BUILD_STORE": str(store)}
    command = [sys.executable, "-m", "llm_build", "plan", "--json", *words, "verify=off", f"dist.path={store}/dist"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def keys(root: Path, checkpoints: dict[str, Path], store: Path) -> dict[tuple[str, str], str]:
    """The key of each library's `lower` and of the browser's runtime: neither waits for another step."""
    sources = ",".join(str(checkpoints[family]) for family in FAMILIES)
    document = plan(root, ["-m", "model=auto", f"model.source={sources}", "target=cpu,webgpu"], store)
    found: dict[tuple[str, str], str] = {}
    for recipe, (family, target) in zip(document["recipes"], product(FAMILIES, ("cpu", "webgpu")), strict=True):
        named = {step["name"]: step["key"] for step in recipe["steps"]}
        found[family, target] = named["lower"]
        if target == "webgpu":
            found["runtime", target] = named["runtime.wasm"]
    assert all(found.values())
    return found


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def before(package: Path, checkpoints: dict[str, Path]) -> dict[tuple[str, str], str]:
    return keys(package, checkpoints, package / "store")


@pytest.fixture
def edited(package: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """The file with one more line of code, for the time of a test."""
    path = package / "llm_build" / request.param
    content = path.read_text()
    path.write_text(content + "\nADDED = 1\n")
    yield request.param
    path.write_text(content)


@pytest.mark.parametrize("edited", EDITS, indirect=True)
def test_an_edit_makes_the_libraries_stale_that_use_the_file(
    edited: str, package: Path, before: dict[tuple[str, str], str], checkpoints: dict[str, Path]
) -> None:
    after = keys(package, checkpoints, package / "store")
    stale = {library for library, key in after.items() if key != before[library]}
    assert stale == EDITS[edited]
