"""CPUs: which instructions a library may use, and whether this machine has them. Stdlib only, for the planner.

arm64 is what every 64-bit ARM has: Armv8.0 with its vectors. Levels of x86-64 are the psABI's (x86-64-v2, -v3, -v4);
names of features are LLVM's, so that they pass to the code generator as they are. Only features that arithmetic can use
are named: identity must not change with what no kernel looks at.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from llm_build.core import system
from llm_build.core.errors import UserError

CPUINFO = Path("/proc/cpuinfo")
HOST = "host"

LEVELS: dict[str, tuple[str, ...]] = {  # level -> what it adds to the level before, as LLVM names it
    "x86-64-v2": ("cx16", "sahf", "popcnt", "sse3", "ssse3", "sse4.1", "sse4.2"),
    "x86-64-v3": ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}
ARM = "arm64"
_MACHINES = {"x86_64": "x86-64", "amd64": "x86-64", "aarch64": ARM, "arm64": ARM}  # first part of a triple, uname -m
LINUX = {"x86-64": "x86_64-linux-gnu", ARM: "aarch64-linux-gnu"}
MACOS = "arm64-apple-macos"
_EXTRA = ("avxvnni", "avx512vnni", "avx512bf16", "avx512fp16", "avx512vbmi")  # beyond the levels
_KERNEL_NAMES = {  # /proc/cpuinfo -> LLVM, where they differ
    "pni": "sse3",
    "lahf_lm": "sahf",
    "sse4_1": "sse4.1",
    "sse4_2": "sse4.2",
    "bmi1": "bmi",
    "abm": "lzcnt",
    "avx_vnni": "avxvnni",
    "avx512_vnni": "avx512vnni",
    "avx512_bf16": "avx512bf16",
    "avx512_fp16": "avx512fp16",
}


@lru_cache(maxsize=1)
def host_features() -> frozenset[str]:
    """The instruction sets of this machine, in LLVM's names.

    Raises:
        UserError: /proc/cpuinfo cannot be read or is not an x86's.
    """
    try:
        text = CPUINFO.read_text()
    except OSError as error:
        raise UserError(
            f"cannot tell what this CPU can do: {CPUINFO}: {error.strerror}", "name a level: target.cpu=x86-64-v3"
        ) from error
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "flags":
            return frozenset(_KERNEL_NAMES.get(flag, flag) for flag in value.split())
    raise UserError(
        f"{CPUINFO} has no x86 flags: this machine is {os.uname().machine}",
        "name what to build for: target.cpu=x86-64-v3, target.cpu=arm64",
    )


def implied_features(cpu: str, features: Iterable[str] = ()) -> frozenset[str]:
    """Everything a library for this level (and these extra features) may use, beyond what each machine of its kind
    has."""
    if cpu == ARM:
        return frozenset(features)
    levels = list(LEVELS)
    reach = levels[: levels.index(cpu) + 1]
    return frozenset(features).union(*(LEVELS[level] for level in reach))


def describe_host() -> dict[str, object]:
    """{"cpu": the highest level this machine has, "features": what it has beyond, in a fixed order}."""
    if _kind_of(os.uname().machine) == ARM:
        return {"cpu": ARM, "features": []}
    found = host_features()
    reached = [level for level in LEVELS if implied_features(level) <= found]
    if not reached:
        lacking = ", ".join(sorted(implied_features("x86-64-v2") - found))
        raise UserError(
            f"this CPU is older than x86-64-v2 (it lacks {lacking})", "build for another machine: target.cpu="
        )
    return {"cpu": reached[-1], "features": [name for name in _EXTRA if name in found]}


def resolve(cpu: str, features: Sequence[str] | None = None) -> tuple[str, tuple[str, ...]]:
    """(level, extra features) of a target: "host" becomes this machine's; a named level has the features it is given.

    Raises:
        UserError: an unknown level or feature; lists the known ones.
    """
    if cpu != HOST:
        _check_known("target.cpu", cpu, (HOST, *LEVELS, ARM))
    if cpu == ARM and features:
        raise UserError(f"target.features: found {', '.join(features)}; arm64 has none to choose", f"target.cpu={ARM}")
    for name in features or ():
        _check_known("target.features", name, _EXTRA)
    if cpu != HOST:
        return cpu, _ordered(features or ())
    host = describe_host()
    level, extra = str(host["cpu"]), host["features"]
    assert isinstance(extra, list)
    return level, _ordered(extra if features is None else features)


def _ordered(features: Iterable[str]) -> tuple[str, ...]:
    given = set(features)
    return tuple(name for name in _EXTRA if name in given)


def _check_known(key: str, found: str, allowed: Sequence[str]) -> None:
    if found not in allowed:
        near = get_close_matches(found, allowed, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{key}: found {found!r}; allowed: {', '.join(allowed)}{meant}", "build doctor")


def _kind_of(machine: str) -> str:
    """The kind of processor that the first part of a triple, or `uname -m`, names; "" for one without kernels here."""
    return _MACHINES.get(machine.partition("-")[0], "")


def triple_of(cpu: str, triple: str | None, of_host: bool = False) -> str:
    """The triple of a target whose ``cpu`` is resolved; None: nobody named one, so it is the CPU's own Linux, or this
    machine's system where the target is this machine (``of_host``).

    Raises:
        UserError: the triple is of another kind of processor.
    """
    kind = ARM if cpu == ARM else "x86-64"
    if triple is None:
        return MACOS if of_host and cpu == ARM and system.is_macos() else LINUX[kind]
    named = _kind_of(triple)
    if named == kind:
        return triple
    remedy = f"target.cpu={ARM if named == ARM else 'x86-64-v3'} target.triple={triple}"
    raise UserError(
        f"target.triple: found {triple!r}, which is not of {cpu} (target.cpu); allowed: {LINUX[kind]}, or another "
        f"system's",
        f"build {remedy}" if named else f"build target.cpu={cpu} target.triple={LINUX[kind]}",
    )


def runs_here(cpu: str, features: Sequence[str], triple: str) -> bool:
    """Whether this machine has all that a library was built with, and the system of its triple."""
    if _system_of(triple) != system.name():
        return False
    try:
        if cpu == ARM or _kind_of(os.uname().machine) == ARM:
            return cpu == _kind_of(os.uname().machine)
        return implied_features(cpu, features) <= host_features()
    except UserError:
        return False


def _system_of(triple: str) -> str:
    """ "Linux", "macOS", or the triple itself where it is of neither."""
    return "macOS" if "-apple-macos" in triple else "Linux" if triple.endswith("-linux-gnu") else triple


def check_runs_here(cpu: str, features: Sequence[str], triple: str, library: str) -> None:
    """UserError if this machine lacks an instruction set that the library was built with, or has another system."""
    machine = os.uname().machine
    if _system_of(triple) != system.name():
        raise UserError(f"{library} was built for {triple}; this machine runs {system.name()}", "build target.cpu=host")
    if (cpu == ARM) != (_kind_of(machine) == ARM):
        raise UserError(f"{library} was built for {cpu}; this machine is {machine}", "build target.cpu=host")
    if cpu == ARM:
        return
    lacking = implied_features(cpu, features) - host_features()
    if lacking:
        host = describe_host()
        raise UserError(
            f"{library} was built for {cpu}{''.join(f' +{name}' for name in features)}; "
            f"this machine is {host['cpu']} and lacks {', '.join(sorted(lacking))}",
            f"build target.cpu={host['cpu']}",
        )
