"""What steps are said to take, for models whose shapes are known."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from llm_build import architectures
from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.config.schema import Metadata, Recipe
from llm_build.core.step import Resources
from llm_build.planner import resolve
from llm_build.planner.graph import step_resources
from llm_build.planner.graph.graph import build_plan
from tests.planning.test_sizing import LLAMA, MIXTRAL

GB = 10**9


@pytest.fixture(scope="module")
def demo() -> Recipe:
    return resolve.resolve(compose.compose(["quant.method=gptq"], None), find_folders())


def like(demo: Recipe, config: dict[str, object], **sizes: int) -> Recipe:
    family = str(config["model_type"])
    architecture = asdict(architectures.load(family).from_hf(config))
    metadata = replace(Metadata(1024, -1, 512, 0, 1, 1), **sizes)
    return replace(demo, family=family, architecture=architecture, metadata=metadata)


def test_a_7b_llama(demo: Recipe) -> None:
    """Its reference was measured at 1.2 GB, its weights in 4 bits are 3.8 GB."""
    recipe = like(demo, LLAMA)
    assert 1.2 * GB < step_resources.reference_bytes(recipe) < 3 * GB
    assert 3.8 * GB < step_resources.running_bytes(recipe) < 6.5 * GB
    assert (
        step_resources.running_bytes(like(demo, LLAMA, max_batch_size=8))
        > step_resources.running_bytes(recipe) + 3 * GB
    )
    assert step_resources.model_size(recipe).widest == 11008


def test_transformers_holds_a_mixture_whole(demo: Recipe) -> None:
    recipe = like(demo, MIXTRAL)
    assert step_resources.reference_bytes(recipe) > 4 * step_resources.model_size(recipe).elements


def test_steps_of_the_plan_say_what_they_take(demo: Recipe) -> None:
    taken = {step.name: step.resources for step in build_plan([demo]).steps.values()}
    assert taken["verify"] == Resources(1, step_resources.running_bytes(demo), 0)
    assert taken["verify.reference"].memory_bytes == step_resources.reference_bytes(demo)
    assert taken["calibrate"].memory_bytes == step_resources.reference_bytes(demo) + step_resources.moments_bytes(demo)
