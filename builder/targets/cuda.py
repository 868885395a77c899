"""CUDA: names of architectures, the compiler of this machine, and kernels' source -> machine code. Stdlib only."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from shutil import which
from tempfile import TemporaryDirectory

from builder.core.errors import StepError, UserError

ARCH = re.compile(r"sm_(\d{2,3})([af]?)")
OLDEST = 75  # compute capability; CUDA 13 dropped what was before
HOST = "host"
PLACES = ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")
FLAGS = ("-fatbin", "-O3", "-std=c++17", "-Xfatbin=-compress-all", "-diag-suppress=177,550,20012,20014")


@dataclass(frozen=True, slots=True)
class Compiler:
    """``program``: nvcc; ``source``: where it was found, for people."""

    program: Path
    source: str


def find_compiler() -> Compiler | None:
    """nvcc of the PATH, of the usual places, of PyPI's nvidia-cuda-nvcc; or None."""
    if found := which("nvcc"):
        return Compiler(Path(found), "PATH")
    for place in PLACES:
        if os.access(place, os.X_OK):
            return Compiler(Path(place), place)
    for found_in_package in packaged("bin/nvcc"):
        return Compiler(found_in_package, "the Python package nvidia-cuda-nvcc")
    return None


def packaged(name: str) -> list[Path]:
    """Files of that name in NVIDIA's PyPI packages: nvidia/cu13/<name>, nvidia/cuda_nvcc/<name>."""
    roots = [Path(entry) / "nvidia" for entry in sys.path if entry]
    return sorted(found for root in roots if root.is_dir() for found in root.glob(f"*/{name}"))


def identity() -> str:
    """Which compiler it would be, for keys: "nvcc 13.0.88", or "none"."""
    compiler = find_compiler()
    return "none" if compiler is None else f"nvcc {version(compiler)}"


def require_compiler() -> Compiler:
    """As find_compiler; StepError when there is none, with how to get one."""
    compiler = find_compiler()
    if compiler is None:
        raise StepError(
            f"no CUDA compiler found: looked for nvcc on the PATH, {', '.join(PLACES)} and PyPI's nvidia-cuda-nvcc",
            "install the CUDA toolkit 13, or: pip install 'llm-build[cuda]'",
        )
    return compiler


@lru_cache(maxsize=4)
def version(compiler: Compiler) -> str:
    """What the compiler says of itself: "13.0.88"."""
    said = subprocess.run([compiler.program, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", said)
    return match[1] if match else "unknown"


def resolve(arch: Sequence[str]) -> tuple[str, ...]:
    """A target's architectures, each once, oldest first; "host" becomes those of this machine's GPUs.

    Raises:
        UserError: none, or one that nothing can be compiled for.
    """
    named = [each for name in arch for each in (detected() if name == HOST else (name,))]
    for name in named:
        match = ARCH.fullmatch(name)
        if not match or int(match[1]) < OLDEST:
            raise UserError(
                f"target.arch: {name!r} is no architecture that CUDA 13 compiles for; allowed: host, or sm_{OLDEST} "
                "and later, as sm_80 (A100), sm_86 (A6000), sm_87 (Jetson Orin), sm_89 (RTX 4090), sm_90a (H100)",
                "build target=cuda target.arch=[sm_90a]",
            )
    if not named:
        raise UserError("target.arch: empty; a CUDA library is for some architecture", "build target=h100")
    return tuple(sorted(set(named), key=lambda name: (int(ARCH.fullmatch(name)[1]), name)))  # type: ignore[index]


def detected() -> tuple[str, ...]:
    """As detect; UserError where there is no GPU."""
    found = detect()
    if not found:
        raise UserError(
            "target.arch: host, but nvidia-smi finds no GPU here; name the architectures to build for",
            "build target=cuda target.arch=[sm_89,sm_90a]",
        )
    return found


def runs_here() -> bool:
    """Whether this machine has a GPU's driver; cheap enough for every plan."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def detect() -> tuple[str, ...]:
    """The architectures of this machine's GPUs: ("sm_90a",); empty without a driver."""
    program = which("nvidia-smi")
    if program is None:
        return ()
    command = [program, "--query-gpu=compute_cap", "--format=csv,noheader"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.findall(r"^(\d+)\.(\d)$", said.stdout, re.MULTILINE) if said.returncode == 0 else []
    names = {f"sm_{major}{minor}{'a' if major == '9' else ''}" for major, minor in found}
    return tuple(sorted(names))


def compile_kernels(source: str, arch: Sequence[str]) -> bytes:
    """A fatbin with machine code for each architecture.

    Raises:
        StepError: there is no compiler, or it failed; says what it printed.
    """
    compiler = require_compiler()
    targets = [f"-gencode=arch=compute_{name.removeprefix('sm_')},code={name}" for name in arch]
    with TemporaryDirectory(prefix="llm-build-cuda-") as folder:
        Path(folder, "kernels.cu").write_text(source, "utf-8")
        threads = f"--threads={min(len(arch), len(os.sched_getaffinity(0)))}"
        command = [str(compiler.program), *FLAGS, *targets, threads, "-o", "kernels.fatbin", "kernels.cu"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip())[-2000:]
            raise StepError(
                f"{compiler.program} could not compile the kernels for {', '.join(arch)}: {said}", "build doctor"
            )
        return Path(folder, "kernels.fatbin").read_bytes()
