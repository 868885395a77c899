"""Objects -> a shared library, with whatever linker this machine has. Stdlib only.

The bytes depend on the objects alone: no build id, no paths, no time stamps, and every symbol in the objects' order.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from shutil import which

from llm_build.core import system
from llm_build.core.errors import StepError

DRIVERS = ("cc", "gcc", "clang")  # compilers, which call a linker
LINKERS = ("ld", "ld.lld")
EMULATIONS = {"x86_64-linux-gnu": "elf_x86_64", "aarch64-linux-gnu": "aarch64linux"}  # as ld names them
_FLAGS = ("--build-id=none", "--strip-all", "-z", "noexecstack", "-z", "relro", "--hash-style=gnu")


def is_native(triple: str) -> bool:
    """Whether this machine's own linker is for the triple; "" is this machine's."""
    return triple in ("", system.host_triple())


def find_linker(triple: str = "") -> list[str] | None:
    """The start of a command line that links shared libraries; or None. For this machine: the first of DRIVERS,
    LINKERS, ziglang. For another kind of Linux: its gcc, ld.lld, its ld, ziglang. There is none for other systems."""
    if not is_native(triple):
        return _find_cross_linker(triple)
    for name in DRIVERS if system.is_macos() else DRIVERS + LINKERS:  # the linker alone does not find macOS's libraries
        if found := which(name):
            return [found]
    return None if system.is_macos() else _zig(triple or system.host_triple())


def _find_cross_linker(triple: str) -> list[str] | None:
    emulation = EMULATIONS.get(triple)
    if emulation is None:
        return None
    if found := which(f"{triple}-gcc"):
        return [found]
    for name in ("ld.lld", f"{triple}-ld"):
        if found := which(name):
            return [found, "-m", emulation]
    return _zig(triple)


def _zig(triple: str) -> list[str] | None:
    """The compiler of the Python package ziglang, which brings a linker for every Linux."""
    if find_spec("ziglang") is None:
        return None
    return [sys.executable, "-m", "ziglang", "cc", "-target", triple]


def identity(triple: str = "") -> str:
    """Which linker it would be, for keys: names and sizes of the programs themselves, not where they lie."""
    start = find_linker(triple)
    if start is None:
        return "none"
    names = (start[0], "ld") if is_native(triple) else (start[0],)
    programs = [os.path.realpath(found) for name in names if (found := which(name))]
    return " ".join(f"{os.path.basename(program)}:{os.path.getsize(program)}" for program in programs)


def linker_identity(triple: str) -> str:
    """``identity`` of the linker for a target's triple, which may be this machine's."""
    return identity("" if is_native(triple) else triple)


def library_for(triple: str) -> str:
    """ "so", or "tar" where only objects can be made: for a system that nothing here links for."""
    return "so" if is_native(triple) or find_linker(triple) else "tar"


def require_linker(triple: str = "") -> list[str]:
    """As find_linker; raises StepError when there is none, with how to get one."""
    start = find_linker(triple)
    if start is None and not is_native(triple):
        raise StepError(
            f"no linker for {triple} found: looked for {triple}-gcc, ld.lld, {triple}-ld and the package ziglang",
            f"apt-get install lld, or: apt-get install gcc-{triple}, or: pip install ziglang",
        )
    if start is None and system.is_macos():
        raise StepError(f"no linker found: looked for {', '.join(DRIVERS)}", "xcode-select --install")
    if start is None:
        raise StepError(
            f"no linker found: looked for {', '.join(DRIVERS + LINKERS)} and the Python package ziglang",
            "apt-get install gcc, or: pip install ziglang",
        )
    return start


def link(objects: Sequence[Path], library: Path, triple: str = "") -> None:
    """Write ``library`` from ``objects``, which are for ``triple``; "" is this machine's.

    Raises:
        StepError: there is no linker, or it failed; says how to get one, or what it printed.
    """
    start = require_linker(triple)
    flags = _flags(start[0], triple, library.name)
    command = [*start, "-shared", *flags, "-o", library.name, *(str(path.resolve()) for path in objects)]
    import subprocess

    done = subprocess.run(command, cwd=library.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepError(
            f"{' '.join(start)} could not link {library.name}: {done.stderr.strip()[-2000:]}", "build doctor"
        )


def _flags(program: str, triple: str, name: str) -> list[str]:
    """A compiler driver takes the linker's flags behind -Wl. Apple's linker leaves what TVM's runtime has to be found
    when the library is loaded, and writes neither a random id nor its path into it."""
    if system.is_macos() and is_native(triple):
        return ["-Wl,-undefined,dynamic_lookup,-no_uuid,-x,-install_name," + name]
    if Path(program).name in (*LINKERS, f"{triple}-ld"):
        return list(_FLAGS)
    return ["-nostdlib", "-fPIC", "-Wl," + ",".join(_FLAGS)]
