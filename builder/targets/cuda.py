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

from llm_build.core import system
from llm_build.core.errors import StepError, UserError
from llm_build.targets import nvrtc

_ARCH = re.compile(r"sm_(\d{2,3})([af]?)")
_OLDEST = 75  # compute capability; CUDA 13 dropped what was before
_HOST = "host"
FOLDERS = ("/usr/local/cuda", "/opt/cuda")
NVRTC = "lib/libnvrtc.so.13"
_HEADERS = ("cuda_fp16.h", "cuda/std/type_traits")  # each in a folder of its own
ONE_ARCH = "build target=h100 (or target.arch=[sm_90a]: one architecture), or: pip install nvidia-cuda-nvcc"
_MMA_FROM = 80  # mma.sync.m16n8k16 and cp.async: PTX ISA
_PDL_FROM = 90  # programmatic dependent launch: PTX ISA, griddepcontrol
PDL_FUNCTIONS = f"""
static __device__ __forceinline__ void next_may_start() {{
#if __CUDA_ARCH__ >= {_PDL_FROM}0
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}}

static __device__ __forceinline__ int starts_late() {{ return 0; }}

static __device__ __forceinline__ int inputs_ready() {{
#if __CUDA_ARCH__ >= {_PDL_FROM}0
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
  return 0;
}}
"""
_FLAGS = ("-fatbin", "-O3", "-std=c++17", "-Xfatbin=-compress-all", "-diag-suppress=177,550,20012,20014")


@dataclass(frozen=True, slots=True)
class Compiler:
    """``name``: "nvcc" or "NVRTC"; ``program``: the one's program, the other's library; ``source``: where it was found,
    for people; ``includes``: folders of CUDA's headers, which NVRTC asks for."""

    name: str
    program: Path
    source: str
    includes: tuple[Path, ...] = ()


def find_compiler() -> Compiler | None:
    """nvcc where there is also the C++ compiler that it calls, else NVRTC of PyPI's nvidia-cuda-nvrtc, or None."""
    nvcc = _find_program("nvcc") if which("g++") or os.environ.get("NVCC_CCBIN") else None
    return Compiler("nvcc", *nvcc) if nvcc else _find_nvrtc()


def _find_program(name: str) -> tuple[Path, str] | None:
    """A program of the toolkit, and where: on the PATH, in the usual places, in PyPI's nvidia-cuda-nvcc."""
    if found := which(name):
        return Path(found), "PATH"
    for place in FOLDERS:
        if os.access(path := Path(place, "bin", name), os.X_OK):
            return path, place
    for found_in_package in files_of_packages(f"bin/{name}"):
        return found_in_package, "the Python package nvidia-cuda-nvcc"
    return None


def _find_nvrtc() -> Compiler | None:
    """PyPI's libnvrtc, where CUDA's headers are too: PyPI's (nvidia-cuda-runtime, nvidia-cuda-cccl) or a toolkit's."""
    library = next(iter(files_of_packages(NVRTC)), None)
    folders = [
        *(found.parent for found in files_of_packages("include/cuda_fp16.h")),
        *(Path(p, "include") for p in FOLDERS),
    ]
    folders += [folder / "cccl" for folder in folders]
    includes = [next((f for f in folders if (f / header).exists()), None) for header in _HEADERS]
    if library is None or None in includes:
        return None
    found = tuple(folder for folder in includes if folder)
    return Compiler("NVRTC", library, "the Python package nvidia-cuda-nvrtc", found)


def find_fatbinary() -> Path | None:
    """What makes one file of code for several architectures: fatbinary, or nvcc, which knows where its own is."""
    if found := _find_program("fatbinary"):
        return found[0]
    compiler = find_compiler()
    return compiler.program if compiler and compiler.name == "nvcc" else None


def files_of_packages(name: str) -> list[Path]:
    """Files of that name in NVIDIA's PyPI packages: nvidia/cu13/<name>, nvidia/cuda_nvcc/<name>."""
    roots = [Path(entry) / "nvidia" for entry in sys.path if entry]
    return sorted(found for root in roots if root.is_dir() for found in root.glob(f"*/{name}"))


def identity() -> str:
    """Which compiler it would be, for keys: "nvcc 13.0.88", "NVRTC 13.5.37", or "none"."""
    compiler = find_compiler()
    return "none" if compiler is None else f"{compiler.name} {_version(compiler)}"


def require_compiler() -> Compiler:
    """As find_compiler; StepError when there is none, with how to get one."""
    compiler = find_compiler()
    if compiler is None:
        raise StepError(
            f"no CUDA compiler found: looked for nvcc (and its g++) on the PATH, in {', '.join(FOLDERS)} and in PyPI's "
            "nvidia-cuda-nvcc, and for NVRTC in PyPI's nvidia-cuda-nvrtc",
            "install the CUDA toolkit 13 and g++, or: pip install 'llm-build[cuda]'",
        )
    return compiler


@lru_cache(maxsize=4)
def _version(compiler: Compiler) -> str:
    """What the compiler, or its package, says of itself: "13.0.88"."""
    if compiler.name == "NVRTC":
        site = compiler.program.parents[3]  # of nvidia/cu13/lib/libnvrtc.so.13
        names = [found.name for found in site.glob("nvidia_cuda_nvrtc-*.dist-info")]
        return names[0].removesuffix(".dist-info").partition("-")[2] if names else "unknown"
    said = subprocess.run([compiler.program, "--version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"V(\d+\.\d+\.\d+)", said)
    return match[1] if match else "unknown"


def has_mma(arch: Sequence[str]) -> bool:
    """Whether all these architectures have mma.sync of float16 and bfloat16, and asynchronous copies."""
    return all(int(_ARCH.fullmatch(name)[1]) >= _MMA_FROM for name in arch)  # type: ignore[index]


def has_wgmma(arch: Sequence[str]) -> bool:
    """Whether all these architectures have wgmma: sm_90a and no other."""
    return set(arch) == {"sm_90a"}


def supports_pdl(arch: Sequence[str]) -> bool:
    """Whether kernels for all these architectures may start before the kernel in front of them is done."""
    return all(int(_ARCH.fullmatch(name)[1]) >= _PDL_FROM for name in arch)  # type: ignore[index]


def resolve(arch: Sequence[str]) -> tuple[str, ...]:
    """A target's architectures, each once, oldest first; "host" becomes those of this machine's GPUs.

    Raises:
        UserError: none, or one that nothing can be compiled for.
    """
    named = [each for name in arch for each in (_detected() if name == _HOST else (name,))]
    for name in named:
        match = _ARCH.fullmatch(name)
        if not match or int(match[1]) < _OLDEST:
            raise UserError(
                f"target.arch: {name!r} is no architecture that CUDA 13 compiles for; allowed: host, or sm_{_OLDEST} "
                "and later, as sm_80 (A100), sm_86 (A6000), sm_87 (Jetson Orin), sm_89 (RTX 4090), sm_90a (H100)",
                "build target=cuda target.arch=[sm_90a]",
            )
    if not named:
        raise UserError("target.arch: empty; a CUDA library is for some architecture", "build target=h100")
    return tuple(sorted(set(named), key=lambda name: (int(_ARCH.fullmatch(name)[1]), name)))  # type: ignore[index]


def _detected() -> tuple[str, ...]:
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
    """Machine code for each architecture: a fatbin, or NVRTC's cubin for one. The driver's cuModuleLoadData takes both,
    and TVM calls both "cubin".

    Raises:
        StepError: there is no compiler, or it failed; says what it printed.
    """
    compiler = require_compiler()
    with TemporaryDirectory(prefix="llm-build-cuda-") as name:
        folder = Path(name)
        if compiler.name == "nvcc":
            return _compile_by_nvcc(compiler, source, arch, folder)
        cubins = [nvrtc.cubin(compiler.program, compiler.includes, source, each) for each in arch]
        return cubins[0] if len(arch) == 1 else _merge_cubins(cubins, arch, folder)


def _compile_by_nvcc(compiler: Compiler, source: str, arch: Sequence[str], folder: Path) -> bytes:
    targets = [f"-gencode=arch=compute_{name.removeprefix('sm_')},code={name}" for name in arch]
    (folder / "kernels.cu").write_text(source, "utf-8")
    threads = f"--threads={min(len(arch), system.cores())}"
    command = [str(compiler.program), *_FLAGS, *targets, threads, "-o", "kernels.fatbin", "kernels.cu"]
    return _run_to_fatbin(command, f"compile the kernels for {', '.join(arch)}", folder)


def _merge_cubins(cubins: Sequence[bytes], arch: Sequence[str], folder: Path) -> bytes:
    """A fatbin of a cubin for each architecture, by the command that nvcc runs (nvcc --dryrun shows it)."""
    program = find_fatbinary()
    if program is None:
        raise StepError("NVRTC makes code for one architecture, and no fatbinary joins several here", ONE_ARCH)
    for name, cubin in zip(arch, cubins, strict=True):
        (folder / f"{name}.cubin").write_bytes(cubin)
    images = [f"--image3=kind=elf,sm={name.removeprefix('sm_')},file={name}.cubin" for name in arch]
    command = [str(program), "--create=kernels.fatbin", "-64", "-compress-all", *images]
    return _run_to_fatbin(command, f"join code for {', '.join(arch)}", folder)


def _run_to_fatbin(command: Sequence[str], task: str, folder: Path) -> bytes:
    """The kernels.fatbin that a command makes in a folder."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise StepError(f"{command[0]} could not {task}: {said}", "build doctor")
    return (folder / "kernels.fatbin").read_bytes()
