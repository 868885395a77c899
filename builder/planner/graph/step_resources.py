"""Memory that steps take while they run, which grows with the model: what admission counts. Estimates from above.

Measured: transformers' reference of the demo 0.43 GB and of a float16 Llama 7B 1.2 GB; the demo's verify 0.5 GB; lower
of a 7B Llama for this CPU 0.3 GB, of the demo up to 0.7 GB in a worker that had loaded torch before.
"""

from __future__ import annotations

from dataclasses import astuple
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from llm_build import architectures
from llm_build.config.schema import Recipe
from llm_build.core.digest import canonical
from llm_build.planner.feasibility.sizing import memory_of
from llm_build.planner.schemes.schemes import scheme_of

GIB = 1 << 30
_FLOAT32 = 4  # bytes
_running: dict[tuple[Any, ...], int] = {}  # a sweep asks again and again


class ModelSize(NamedTuple):
    """Of a model: elements of all parameters and of the largest, inputs of the widest linear layer, whether it is a
    mixture of experts."""

    elements: int
    largest: int
    widest: int
    mixture: bool


def model_size(recipe: Recipe) -> ModelSize:
    return _model_size(recipe.family, canonical(recipe.architecture).decode())


@lru_cache(maxsize=256)
def _model_size(family: str, architecture: str) -> ModelSize:
    import json

    module = architectures.load(family)
    table = module.parameters(module.from_architecture(json.loads(architecture)))
    sizes = [prod(parameter.shape) for parameter in table]
    widest = max(parameter.shape[-1] for parameter in table if parameter.kind in ("linear", "head"))
    return ModelSize(sum(sizes), max(sizes), widest, any(parameter.kind == "router" for parameter in table))


def reference_bytes(recipe: Recipe) -> int:
    """transformers in float32 (verification/source_model): one module's weights, as they are stored and widened, and
    the logits; of a mixture, whose experts transformers fuses, all weights."""
    size = model_size(recipe)
    weights = size.elements * _FLOAT32 if size.mixture else 2 * size.largest * _FLOAT32
    return GIB + weights + 2 * recipe.verify.logits_bytes


def moments_bytes(recipe: Recipe) -> int:
    """The moments of one layer's inputs, float32 (in, in), of the widest and of another."""
    return 2 * _FLOAT32 * model_size(recipe).widest ** 2


def lowering_bytes(recipe: Recipe) -> int:
    """TVM, whose layers are one function each: the size of a model hardly shows. Beside it nvcc or emcc, for GPUs."""
    return GIB if recipe.target.kind == "cpu" else 2 * GIB


def running_bytes(recipe: Recipe) -> int:
    """The library with its weights and KV cache, on all its ranks, and the process that drives it."""
    sizes = recipe.metadata
    key = (
        recipe.family, canonical(recipe.architecture), canonical(scheme_of(recipe.quant)), astuple(sizes),
        recipe.target.kind, recipe.target.runtime_bytes,
    )  # fmt: skip
    if key not in _running:
        _running[key] = memory_of(recipe).total
    return GIB // 2 + 2 * recipe.verify.logits_bytes + _running[key] * sizes.tensor_parallel_shards
