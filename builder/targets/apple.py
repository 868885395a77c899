"""Apple's Metal compiler, where there is one: kernels become a Metal library at build time instead of on the device.

Standard library only; nothing is run at plan time.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

from llm_build.core.errors import StepError

_SDKS = {"ios": "iphoneos", "macos": "macosx"}  # by the system in a target's triple
_SOURCE, COMPILED = "metal", "metallib"  # formats of kernels, as TVM's runtime names them


def find_xcrun() -> Path | None:
    """Xcode's launcher on the path, or None."""
    launcher = which("xcrun")
    return Path(launcher) if launcher else None


def identity() -> str:
    """For keys: what kernels are kept as, and with which Xcode they were compiled (its developer folder)."""
    launcher = find_xcrun()
    if launcher is None:
        return _SOURCE
    return f"{COMPILED} {os.environ.get('DEVELOPER_DIR', '')} {launcher.stat().st_size}"


def sdk_of(triple: str) -> str:
    """arm64-apple-ios17 -> iphoneos."""
    system = triple.split("-")[2].rstrip("0123456789.")
    if system not in _SDKS:
        raise StepError(
            f"target.triple: {triple} names no system with Metal; allowed: arm64-apple-ios, arm64-apple-macos"
        )
    return _SDKS[system]


def compile_kernels(source: str, triple: str) -> bytes:
    """A Metal library of the kernels. StepError when Apple's compiler refuses them; says what it printed."""
    xcrun = str(find_xcrun())
    start = [xcrun, "-sdk", sdk_of(triple)]
    with TemporaryDirectory(prefix="llm-build-metal-") as folder:
        Path(folder, "kernels.metal").write_text(source, "utf-8")
        for command in (
            [*start, "metal", "-O3", "-c", "kernels.metal", "-o", "kernels.air"],
            [*start, "metallib", "kernels.air", "-o", "kernels.metallib"],
        ):
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                message = (done.stderr.strip() or done.stdout.strip())[-2000:]
                raise StepError(f"{' '.join(command[1:4])} could not compile the kernels: {message}", "build doctor")
        return Path(folder, "kernels.metallib").read_bytes()
