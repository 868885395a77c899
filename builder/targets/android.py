"""Android's NDK, where there is one: it links an arm64 library (.so) of a model's objects.

Standard library only; nothing is run at plan time.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from llm_build.core.errors import StepError

NDK_VARIABLES = ("ANDROID_NDK_HOME", "ANDROID_NDK_ROOT", "ANDROID_NDK")  # variables that Android's own tools read
_CLANG = re.compile(r"aarch64-linux-android(\d+)-clang")
_OLDEST_API = 24  # Android 7, the oldest that MLC's app runs on
_FLAGS = ("-shared", "-fPIC", "-Wl,--build-id=none", "-Wl,--strip-all", "-Wl,-z,max-page-size=16384")


def find_ndk() -> Path | None:
    """The folder of the NDK that Android's variables name."""
    named = (Path(os.environ.get(variable) or "/nowhere") for variable in NDK_VARIABLES)
    return next((folder for folder in named if (folder / "source.properties").is_file()), None)


def ndk_version() -> str:
    """The revision that the NDK's source.properties says; empty without an NDK."""
    folder = find_ndk()
    lines = (folder / "source.properties").read_text("utf-8").splitlines() if folder else []
    return next((line.partition("=")[2].strip() for line in lines if line.startswith("Pkg.Revision")), "")


def linker_identity(triple: str) -> str:
    """Which NDK links a library, for keys; there is one for every ``triple`` here."""
    return f"NDK {ndk_version()}"


def find_clang() -> Path:
    """The NDK's compiler for the oldest Android that has what libraries call.

    Raises:
        StepError: there is no NDK, or it has no such compiler.
    """
    folder = find_ndk()
    if folder is None:
        raise StepError(
            f"an Android .so is linked by the NDK, and none of {', '.join(NDK_VARIABLES)} names one",
            "build target=android   leaves the objects, which need no NDK",
        )
    compilers = {
        int(match[1]): file
        for file in folder.glob("toolchains/llvm/prebuilt/*/bin/*-clang")
        if (match := _CLANG.fullmatch(file.name)) and int(match[1]) >= _OLDEST_API
    }
    if not compilers:
        raise StepError(
            f"{folder} has no toolchains/llvm/prebuilt/*/bin/aarch64-linux-android{_OLDEST_API}-clang or later"
        )
    return compilers[min(compilers)]


def link(objects: Sequence[Path], library: Path, triple: str = "") -> None:
    """Write ``library``, for any ``triple`` of Android's. What it calls of TVM's runtime stays open: the app's own
    library brings it.

    StepError when the linker fails; says what it printed.
    """
    clang = find_clang()
    command = [str(clang), *_FLAGS, "-o", library.name, *(str(path.resolve()) for path in objects)]
    done = subprocess.run(command, cwd=library.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepError(f"{clang.name} could not link {library.name}: {done.stderr.strip()[-2000:]}", "build doctor")
