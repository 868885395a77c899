"""The demo for Apple's and Android's GPUs, built once, and the tools that prove it here."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import Shell

SWITCH = "LLM_BUILD_TARGET_TESTS"  # require: fail when a tool is missing, as CI does


def program(name: str, install: str) -> str:
    """A program by its name or with LLVM's version behind it; skips (CI: fails) where there is none."""
    found = next(
        filter(None, (shutil.which(f"{name}{end}") for end in ("", *(f"-{i}" for i in range(25, 13, -1))))), None
    )
    if found is None:
        missing(name, install)
    return str(found)


def missing(name: str, install: str) -> None:
    say = pytest.fail if os.environ.get(SWITCH) == "require" else pytest.skip
    say(f"no {name}: {install}")


@pytest.fixture(scope="session")
def pocl() -> None:
    """An OpenCL device that is this CPU."""
    if find_spec("pyopencl") is None:
        missing("pyopencl", "pip install -e '.[test]'")
    import pyopencl

    try:
        platforms = [platform.name for platform in pyopencl.get_platforms()]
    except pyopencl.LogicError:
        platforms = []
    if "Portable Computing Language" not in platforms:
        missing("PoCL", "apt-get install pocl-opencl-icd")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The demo in two schemes for ios and android."""
    folder = tmp_path_factory.mktemp("targets")
    (folder / "work").mkdir()
    shell = Shell(folder / "work", folder / "store")
    shell.run("-m", "quant=q4f16_1,q4f32_1", "target=ios,android", "verify=off")
    return shell


@pytest.fixture(scope="session")
def apps(built: Shell) -> Shell:
    """The same as parts of apps."""
    built.run("-m", "quant=q4f16_1,q4f32_1", "target=ios", "package=ios_app", "verify=off")
    built.run("quant=q4f16_1", "target=android", "package=android_app", "verify=off")
    return built


def dist(shell: Shell, name: str) -> Path:
    return shell.folder / "dist" / name
