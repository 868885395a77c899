"""The steps that put weights and library together: the model as a runtime loads it, a web page or an app around it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import llm_build
from llm_build import architectures
from llm_build.config.schema import Recipe
from llm_build.config.strict import as_plain_data
from llm_build.core.digest import digest_of_tree
from llm_build.core.step import Input, Step
from llm_build.planner.feasibility.sizing import memory_of
from llm_build.planner.graph.recipe_keys import RECIPE_KEYS
from llm_build.planner.schemes.schemes import scheme_of
from llm_build.targets import npm
from llm_build.targets.mlc_apps import library_name

_WEB_PAGE = Path(llm_build.__file__).resolve().parent / "web_page"


def scheme_name(recipe: Recipe) -> str:
    """How the artifact names its scheme. That of a quantized checkpoint is the checkpoint's own."""
    return recipe.quant.name if recipe.quant.packing else recipe.scheme_label or recipe.quant.name


def package_step(recipe: Recipe, fetch: Step, shard: Step, weights: Step, library: Step) -> Step:
    """``weights``, ``library``: the steps that made them."""
    ending, metadata = recipe.target.library, as_plain_data(recipe.metadata)
    if recipe.target.kind == "webgpu":  # WebLLM takes no window beside a context; the kernels have it, whatever it says
        metadata |= {"sliding_window_size": -1, "attention_sink_size": 0}
    return Step(
        name="package",
        function="llm_build.steps.package:run",
        params={
            "name": recipe.name,
            "library": f"{recipe.name}.{ending}",
            "family": recipe.family,
            "architecture": dict(recipe.architecture),
            "scheme": scheme_of(recipe.quant),
            "quantization": scheme_name(recipe),
            "method": recipe.quant.method,
            "metadata": metadata,
            "conv_template": recipe.model.conv_template,
        },
        recipe_keys=RECIPE_KEYS,
        inputs={
            "shards": Input(weights.id, "*"),
            "library": Input(library.id, f"library.{ending}"),
            "files": Input(fetch.id, "file/*"),
            "parameters": Input(shard.id, "parameters.json"),
        },
        tools=("jinja2",),
        code=(architectures.FAMILIES[recipe.family],),
        role="model",
    )


def web_page_steps(recipe: Recipe, package: Step) -> list[Step]:
    """A page around an artifact for browsers."""
    engine = Step(
        name="web_page.engine",
        function="llm_build.steps.web_llm:run",
        params=asdict(npm.WEB_LLM),
        programs=("npm",),
        locked_params=("name", "version", "integrity"),
    )
    page = Step(
        name="web_page",
        function="llm_build.steps.web_page:run",
        params={
            "name": recipe.name,
            "library": f"{recipe.name}.{recipe.target.library}",
            "family": recipe.family,
            "scheme": scheme_name(recipe),
            "template": digest_of_tree(_WEB_PAGE),
        },
        inputs={"package": Input(package.id, "*"), "engine": Input(engine.id, "*")},
        locked_params=("template",),
    )
    return [engine, page]


def app_step(recipe: Recipe, package: Step, lower: Step) -> Step:
    """What an app's project includes."""
    return Step(
        name="app",
        function="llm_build.steps.app:run",
        params={
            "name": recipe.name,
            "kind": recipe.package.kind,
            "library": f"{recipe.name}.{recipe.target.library}",
            "model_lib": library_name(lower.params),
            "memory_bytes": memory_of(recipe).total,
        },
        inputs={"package": Input(package.id, "*")},
    )
