"""What a step needs that only some machines of a cluster have. Never part of any identity: it says where, not what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from llm_build.core.step import Step

# A sliver of what a node declares: it is there or not, and how many steps use it at one time the processors say.
_MIN_SHARE = 0.001
_DECLARED = ("nvcc", "ndk", "emcc", "npm", "xcrun")  # programs that a node says it has; every node has a linker


def with_cluster_resources(steps: Iterable[Step]) -> list[Step]:
    """The steps of a recipe, each with the programs that it needs where it runs."""
    return [_with(step, _cluster_resources_of(step)) for step in steps]


def _cluster_resources_of(step: Step) -> dict[str, float]:
    """{"nvcc": _MIN_SHARE} of lower for a GPU; empty for most."""
    return {program: _MIN_SHARE for program in step.programs if program in _DECLARED}


def _with(step: Step, custom: dict[str, float]) -> Step:
    return replace(step, resources=replace(step.resources, custom=custom)) if custom else step
