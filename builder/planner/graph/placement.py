"""What a step needs that only some machines of a cluster have. Never part of any identity: it says where, not what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from builder.config.schema import Recipe
from builder.core.step import Step
from builder.targets import apple

# A sliver of what a node declares: it is there or not, and how many steps use it at one time the processors say.
SOME = 0.001
NEEDS = {  # step -> {target.kind, with the library where that decides; or package.kind: what the step runs}
    "lower": {"cuda": "nvcc", "opencl.so": "ndk"},
    "runtime.wasm": {"webgpu": "emcc"},
    "link": {"webgpu": "emcc"},
    "web_page.engine": {"web_page": "npm"},
}


def placed(steps: Iterable[Step], recipe: Recipe) -> list[Step]:
    """The steps of a recipe, each with the tools that it needs where it runs."""
    return [_with(step, custom_of(step, recipe)) for step in steps]


def custom_of(step: Step, recipe: Recipe) -> dict[str, float]:
    """{"nvcc": SOME} of lower for a GPU; empty for most."""
    target = recipe.target
    kinds = (target.kind, f"{target.kind}.{target.library}", recipe.package.kind)
    found = {tool: SOME for kind, tool in NEEDS.get(step.name, {}).items() if kind in kinds}
    if str(step.params.get("kernels", "")).startswith(apple.COMPILED):  # without Xcode, Metal source would come out
        found["xcrun"] = SOME
    return found


def _with(step: Step, custom: dict[str, float]) -> Step:
    return replace(step, resources=replace(step.resources, custom=custom)) if custom else step
