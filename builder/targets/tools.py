"""Programs that are not Python packages: which target needs which, where it is on this machine, how to get it.

What a target cannot be built without is checked when a build is planned; what only makes its library better (a Metal
library instead of Metal source, an Android .so instead of objects) is shown by `build doctor`. Stdlib only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from llm_build.core.errors import Unsupported
from llm_build.targets import apple, cuda, webgpu
from llm_build.targets.android import NDK_VARIABLES, find_ndk, ndk_version


@dataclass(frozen=True, slots=True)
class Tool:
    """``needed``: the kinds of targets and packages that it is run for; ``program``: what steps that run it call it;
    ``find``: its path, cheaply; ``version``: what it says of itself, once it was found."""

    name: str
    needed: tuple[str, ...]
    program: str
    find: Callable[[], Path | None]
    version: Callable[[], str]
    missing: str  # what was looked for, and where
    install: str
    without: str  # what can be built without it


def _on_path(name: str) -> Callable[[], Path | None]:
    def find() -> Path | None:
        found = which(name)
        return Path(found) if found else None

    return find


def _find_cuda_compiler() -> Path | None:
    found = cuda.find_compiler()
    return found.program if found else None


def _no_version() -> str:
    """For tools whose version decides nothing here."""
    return ""


_EVERY_OTHER = "every other target builds without it"
REQUIRED = (
    Tool(
        "a CUDA compiler", ("cuda",), "nvcc", _find_cuda_compiler, cuda.identity,
        "no nvcc (with a g++) was found on the path, in /usr/local/cuda or from PyPI, and no NVRTC from PyPI",
        "install the CUDA toolkit 13 and g++, or: pip install 'llm-build[cuda]'", _EVERY_OTHER,
    ),
    Tool(
        "fatbinary", ("cuda.several",), "nvcc", cuda.find_fatbinary, _no_version,
        "NVRTC, the CUDA compiler here, makes code for one architecture at a time; no fatbinary was found on the path, "
        "in /usr/local/cuda or from PyPI", cuda.ONE_ARCH, "a library for one architecture builds without it",
    ),
    Tool(
        "emscripten", ("webgpu",), "emcc", webgpu.find_emcc, webgpu.emcc_version,
        "no emcc was found on the path",
        "apt-get install emscripten (or https://emscripten.org/docs/getting_started), or: build target=cpu",
        _EVERY_OTHER,
    ),
    Tool(
        "npm", ("web_page",), "npm", _on_path("npm"), _no_version, "no npm was found on the path",
        "apt-get install npm, or: build package=mlc", "package=mlc builds without it",
    ),
    Tool(
        "the Android NDK", ("opencl.so",), "ndk", find_ndk, ndk_version,
        f"none is where {', '.join(NDK_VARIABLES)} say",
        "https://developer.android.com/ndk/downloads, or: build target=android", "target=android leaves objects "
        "without it", 
    ),
)  # fmt: skip
OPTIONAL = (
    Tool(
        "xcrun", (), "xcrun", apple.find_xcrun, _no_version, "no xcrun was found on the path", "install Xcode",
        "target=ios and target=macos build without it, with Metal kernels as source",
    ),
)  # fmt: skip


def missing_tools(*kinds: str) -> list[Tool]:
    """The tools that a target's kind (also with its library: "opencl.so") or a package's kind asks for and that are not
    here."""
    return [tool for tool in REQUIRED if set(kinds) & set(tool.needed) and tool.find() is None]


def missing_tool_error(tool: Tool, asked: str) -> Unsupported:
    """``asked``: what of the recipe needs it ("target=webgpu")."""
    return Unsupported(
        f"{asked} needs {tool.name}, and {tool.missing}; {tool.without}",
        tool.install,
    )
