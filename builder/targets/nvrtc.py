"""NVRTC, NVIDIA's compiler of CUDA C++ as a library: kernels' source -> a cubin. It needs no C++ compiler. Stdlib only.

Functions and options: NVIDIA, "NVRTC", https://docs.nvidia.com/cuda/nvrtc/index.html, sections "Basic Usage" and
"Supported Compile Options".
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_build.core.errors import StepError

_SUCCESS = 0  # NVRTC_SUCCESS
_FLAGS = ("--std=c++17", "--disable-warnings")


def cubin(library: Path, includes: Sequence[Path], source: str, arch: str) -> bytes:
    """Machine code (an ELF file of machine EM_CUDA) for one architecture, as "sm_90a".

    Args:
        library: libnvrtc.so.13; includes: folders of CUDA's headers.

    Raises:
        StepError: NVRTC cannot be loaded, or it failed; says what it printed.
    """
    try:
        nvrtc = ctypes.CDLL(str(library))
    except OSError as error:
        raise StepError(f"NVRTC cannot be loaded: {error}", "pip install 'llm-build[cuda]'") from None
    options = [f"--gpu-architecture={arch}", *_FLAGS, *(f"--include-path={folder}" for folder in includes)]
    program = ctypes.c_void_p()
    _require_success(
        nvrtc, nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    )
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        if nvrtc.nvrtcCompileProgram(program, len(options), given) != _SUCCESS:
            message = _bytes_of(nvrtc, program, "ProgramLog").rstrip(b"\0").decode(errors="replace").strip()[-2000:]
            raise StepError(f"NVRTC ({library}) could not compile the kernels for {arch}: {message}", "build doctor")
        return _bytes_of(nvrtc, program, "CUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _bytes_of(nvrtc: Any, program: ctypes.c_void_p, what: str) -> bytes:
    """What nvrtcGet<what> has of a program; nvrtcGet<what>Size says how much."""
    size = ctypes.c_size_t()
    _require_success(nvrtc, getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
    data = ctypes.create_string_buffer(size.value)
    _require_success(nvrtc, getattr(nvrtc, f"nvrtcGet{what}")(program, data))
    return data.raw


def _require_success(nvrtc: Any, status: int) -> None:
    if status != _SUCCESS:
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise StepError(f"NVRTC failed: {nvrtc.nvrtcGetErrorString(status).decode()}", "build doctor")
