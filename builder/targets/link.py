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

from builder.core.errors import StepError

DRIVERS = ("cc", "gcc", "clang")  # compilers, which call a linker
LINKERS = ("ld", "ld.lld")
FLAGS = ("--build-id=none", "--strip-all", "-z", "noexecstack", "-z", "relro", "--hash-style=gnu")


def find_linker() -> list[str] | None:
    """The start of a command line that links shared libraries: the first of DRIVERS, LINKERS, ziglang; or None."""
    for name in DRIVERS + LINKERS:
        if found := which(name):
            return [found]
    if find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-gnu"]
    return None


def identity() -> str:
    """Which linker it would be, for keys: names and sizes of the programs themselves, not where they lie."""
    start = find_linker()
    if start is None:
        return "none"
    programs = [os.path.realpath(found) for name in (start[0], "ld") if (found := which(name))]
    return " ".join(f"{os.path.basename(program)}:{os.path.getsize(program)}" for program in programs)


def require_linker() -> list[str]:
    """As find_linker; raises StepError when there is none, with how to get one."""
    start = find_linker()
    if start is None:
        raise StepError(
            f"no linker found: looked for {', '.join(DRIVERS + LINKERS)} and the Python package ziglang",
            "apt-get install gcc, or: pip install ziglang",
        )
    return start


def link(objects: Sequence[Path], library: Path) -> None:
    """Write ``library`` from ``objects``.

    Raises:
        StepError: there is no linker, or it failed; says how to get one, or what it printed.
    """
    start = require_linker()
    plain = Path(start[0]).name in LINKERS
    flags = list(FLAGS) if plain else ["-nostdlib", "-fPIC", *_driver_flags()]
    command = [*start, "-shared", *flags, "-o", library.name, *(str(path.resolve()) for path in objects)]
    import subprocess

    done = subprocess.run(command, cwd=library.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StepError(
            f"{' '.join(start)} could not link {library.name}: {done.stderr.strip()[-2000:]}", "build doctor"
        )


def _driver_flags() -> list[str]:
    """A compiler driver takes the linker's flags behind -Wl."""
    return ["-Wl," + ",".join(FLAGS)]
