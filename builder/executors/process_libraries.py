"""Which libraries one process can load after others: what a step loaded stays, whatever step comes next."""

from __future__ import annotations

from collections.abc import Mapping

from llm_build.core.step import Loads

# {library: those that spoil it when they were loaded before}. TVM's runtime registers its names first, and a compiler
# that is imported after it finds no operators. torch and TVM go together in either order.
_SPOILED_BY: Mapping[Loads, frozenset[Loads]] = {"tvm-compiler": frozenset({"tvm-runtime"})}
# {library: those that have it too}
_PART_OF: Mapping[Loads, frozenset[Loads]] = {"tvm-runtime": frozenset({"tvm-compiler"})}


def can_load(loaded: frozenset[Loads], library: Loads) -> bool:
    """Whether a process that has loaded these can load ``library`` as well."""
    return not _SPOILED_BY.get(library, frozenset()) & loaded


def has_loaded(loaded: frozenset[Loads], library: Loads) -> bool:
    """Whether ``library`` is there already, by itself or as a part of another one."""
    return not library or bool(({library} | _PART_OF.get(library, frozenset())) & loaded)


def with_library(loaded: frozenset[Loads], library: Loads) -> frozenset[Loads]:
    """What the process has loaded once a step with ``library`` has begun in it."""
    return loaded if has_loaded(loaded, library) else loaded | {library}
