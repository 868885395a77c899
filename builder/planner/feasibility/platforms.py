"""What a recipe's target means for its steps: what code depends on, what links it, and whether it can run here."""

from __future__ import annotations

from typing import Any

from llm_build.config.schema import Recipe, Target
from llm_build.config.strict import as_plain_data
from llm_build.targets import android, cpu, cuda, link, nvidia_gpus

_MEMORY = ("memory_bytes", "runtime_bytes", "max_sequences", "gpus", "refused")  # of a target, and not in its code


def target_of(target: Target) -> dict[str, Any]:
    """What code is generated from: not how much memory there is."""
    fields = as_plain_data(target)
    if target.kind == "cpu":
        names = ("kind", "triple", "cpu", "features")
        fields = {k: fields[k] for k in (names if target.library == "so" else (*names, "library"))}
    else:
        fields = {k: v for k, v in fields.items() if k not in _MEMORY}
    return {**fields, "features": list(fields["features"] or ())}


def linker_of(target: Target, native: str) -> str:
    """``native``: the identity of this machine's own linker."""
    if target.kind == "opencl":
        return android.linker_identity(target.triple)
    return native if link.is_native(target.triple) else link.identity(target.triple)


def platform_of(target: Target) -> str:
    """For people: what a library is for."""
    return target.cpu if target.kind == "cpu" else target.kind


def runs_here(target: Target, shards: int = 1) -> bool:
    """Whether a library for the target can be run on this machine, as far as can be seen without loading anything."""
    if target.kind == "cpu":
        return target.library == "so" and cpu.runs_here(target.cpu, target.features or (), target.triple)
    return target.kind == "cuda" and cuda.runs_here() and (shards == 1 or nvidia_gpus.count() >= shards)


def gpus_of(recipe: Recipe) -> int:
    """GPUs that a run of the library takes."""
    return 0 if recipe.target.kind == "cpu" else recipe.metadata.tensor_parallel_shards
