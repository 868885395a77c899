"""The steps that deal a model's stored weights out to several ranks. The recipe of one GPU has none of them."""

from __future__ import annotations

from llm_build import architectures
from llm_build.config.schema import Recipe
from llm_build.core.step import Input, Resources, Step
from llm_build.planner.graph.recipe_keys import RECIPE_KEYS
from llm_build.planner.schemes.schemes import scheme_of

_MEMORY_BYTES = 1 << 28


def rank_steps(recipe: Recipe, shard: Step, quantize: Step) -> list[Step]:
    """What says who holds what, and what cuts each shard of the one-GPU build; nothing where files stay whole."""
    shards = recipe.metadata.tensor_parallel_shards
    if shards == 1 or recipe.package.sharding == "whole":
        return []
    ranks = Step(
        name="ranks",
        function="llm_build.steps.ranks:run",
        params={
            "family": recipe.family,
            "architecture": dict(recipe.architecture),
            "scheme": scheme_of(recipe.quant),
            "shards": shards,
        },
        recipe_keys=RECIPE_KEYS,
        inputs={"parameters": Input(shard.id, "parameters.json")},
        code=(architectures.FAMILIES[recipe.family],),
    )
    cut = Step(
        name="cut",
        function="llm_build.steps.cut:run",
        params={"shards": shards},
        recipe_keys=RECIPE_KEYS,
        inputs={"ranks": Input(ranks.id, "ranks.json"), "quantized": Input(quantize.id, "*")},
        expand="ranks",
        tools=("numpy",),
        resources=Resources(cpu=1, memory_bytes=_MEMORY_BYTES),
    )
    return [ranks, cut]
