"""WebAssembly libraries for browsers: TVM's runtime compiled by emscripten, and a model's objects linked with it.

Standard library only; nothing is run at plan time.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from shutil import which
from typing import Any

from llm_build.core.digest import digest_of_tree
from llm_build.core.errors import StepError

_HEADERS = Path(__file__).parent / "wasm"  # what the wheels lack: README.md there
RUNTIME = ("wasm_runtime", "tvmjs_support", "webgpu_runtime")  # tvm/web/emcc/<name>.cc
_COMPILE = ("-O2", "-std=c++17", "-Wno-ignored-attributes")
INCLUDE = (".", "include", "3rdparty/tvm-ffi/include", "3rdparty/tvm-ffi/3rdparty/dlpack/include")
_SOURCES = {  # place in the tree that the sources expect: (distribution, place in its wheel)
    "src": ("apache-tvm", "tvm/src"),
    "include": ("apache-tvm", "tvm/include"),
    "web/emcc": ("apache-tvm", "tvm/web/emcc"),
    "3rdparty/tvm-ffi/src": ("apache-tvm-ffi", "tvm_ffi/src"),
    "3rdparty/tvm-ffi/include": ("apache-tvm-ffi", "tvm_ffi/include"),
    "3rdparty/tvm-ffi/3rdparty/dlpack": ("apache-tvm-ffi", "tvm_ffi/3rdparty/dlpack"),
}
_LINK = (
    "-O1",  # -O2 takes a third off the file, and half a minute
    "--no-entry",
    *("-s", "STANDALONE_WASM=1", "-s", "WASM_BIGINT=1", "-s", "ALLOW_MEMORY_GROWTH=1"),
    *("-s", "ERROR_ON_UNDEFINED_SYMBOLS=0", "-Wl,--strip-all"),
)
_FROM_JAVASCRIPT = {"TVMFFIWasmSafeCall", "TVMFFIWasmFunctionDeleter"}  # what tvmjs gives a library when it loads it
_MIB = 1 << 20
_STACK_BYTES = 5 * _MIB  # emscripten 3.1.6's own
_HEAP_BYTES = (
    16 * _MIB
)  # of the runtime; beside stack and data the demo was seen to take 2.4 MiB, kernels' text included


def find_emcc() -> Path | None:
    """The emscripten compiler on the path, or None."""
    found = which("emcc")
    return Path(found) if found else None


def _require_emcc() -> Path:
    """As find_emcc; raises StepError when it has gone since the build was planned (targets/tools.py looked then)."""
    found = find_emcc()
    if found is None:
        raise StepError("no emcc was found on the path", "apt-get install emscripten")
    return found


def identity() -> dict[str, str]:
    """What the runtime's objects depend on beside the wheels: the version of emscripten and our headers."""
    return {"emscripten": emcc_version(), "headers": digest_of_tree(_HEADERS)}


def emcc_version() -> str:
    """From the file that emscripten keeps beside its compiler, as running it takes a second; "none" without emcc."""
    found = find_emcc()
    if found is None:
        return "none"
    real = found.resolve()
    for folder in real.parents[:2]:  # Debian's emcc is a script in a subfolder
        if (file := folder / "emscripten-version.txt").is_file():
            return file.read_text().strip().strip('"')
    return f"emcc of {real.stat().st_size} bytes"


def compile_runtime(objects: Mapping[str, Path], tree: Path, starts: Callable[[str], None]) -> None:
    """Compile the runtime. ``objects``: where each of RUNTIME goes; ``tree``: an empty folder for the sources;
    ``starts`` hears of each file.

    The objects depend on the sources alone: paths are relative to the tree.
    """
    emcc = _require_emcc()
    lay_out_sources(tree)
    include = [f"-I{folder}" for folder in INCLUDE]
    for name, path in objects.items():
        starts(f"{name}.cc")
        _run([str(emcc), *_COMPILE, *include, "-c", f"web/emcc/{name}.cc", "-o", str(path.resolve())], tree)


def lay_out_sources(tree: Path) -> None:
    """Sources from the wheels, and our headers for what they lack. Raises StepError when a wheel has no sources."""
    for place, (name, inside) in _SOURCES.items():
        try:
            folder = Path(str(distribution(name).locate_file(inside)))
        except PackageNotFoundError as error:
            raise StepError(f"{name} is not installed", f"pip install {name}") from error
        if not folder.is_dir():
            raise StepError(f"this {name} brings no {inside}, so its runtime cannot be compiled for browsers")
        shutil.copytree(folder, tree / place, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(_HEADERS, tree, dirs_exist_ok=True)


def link(objects: Sequence[Path], runtime: Sequence[Path], library: Path, memory_bytes: int) -> None:
    """Write the ``library`` (.wasm) from a model's objects and the runtime's.

    Raises StepError when the linker fails, or when something stays undefined that no browser brings.
    """
    emcc = _require_emcc()
    paths = [str(path.resolve()) for path in (*runtime, *objects)]
    memory = ["-s", f"INITIAL_MEMORY={memory_bytes}"]
    said = _run([str(emcc), *_LINK, *memory, *paths, "-o", library.name], library.parent)
    missing = set(re.findall(r"undefined symbol: (\w+)", said)) - _FROM_JAVASCRIPT
    if missing:
        raise StepError(f"{library.name}: the runtime lacks {', '.join(sorted(missing))}", "build doctor")


def initial_memory(metadata: Mapping[str, Any], objects_bytes: int) -> int:
    """Bytes of memory that the module starts with; it may grow, which takes the browser a copy.

    It holds the objects' data, the stack, and the runtime's heap: kernels' text as the loader unpacks it, two rows of
    logits in float32, and page tables of the KV cache (4 bytes for each of its tokens, several times over). Weights
    and the KV cache itself lie in the device's memory.
    """
    logits = 2 * 4 * int(metadata["vocab_size"])
    tables = 8 * 4 * int(metadata["context_window_size"]) * int(metadata["max_batch_size"])
    whole = _STACK_BYTES + _HEAP_BYTES + 3 * objects_bytes + logits + tables
    return -(-whole // _MIB) * _MIB


def _run(command: list[str], folder: Path) -> str:
    """What the command wrote. Settings of emscripten in the environment would change its result: they are left out."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("EMCC_", "EM_"))}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        raise StepError(f"{Path(command[0]).name} failed: {done.stdout.strip()[-2000:]}", "build doctor")
    return done.stdout
