"""The steps that hold a library against transformers. A text that verify or a calibration reads, and the checkpoint as
transformers reads it, are described here too."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import llm_build
from llm_build.config.schema import Recipe
from llm_build.core.errors import UserError
from llm_build.core.step import Input, Resources, Step
from llm_build.formats.checkpoint import has_tokenizer
from llm_build.planner.feasibility.platforms import platform_of, runs_here
from llm_build.planner.graph.recipe_keys import VERIFY_KEYS
from llm_build.planner.graph.step_resources import reference_bytes, running_bytes
from llm_build.planner.schemes.schemes import scheme_of
from llm_build.planner.schemes.verify_limits import limits_of

_HELDOUT = Path(llm_build.__file__).resolve().parent / "demo" / "heldout.txt"
DEQUANTIZED = "verify.dequantized"
VALIDATIONS = ("verify", "verify.weights")  # of a library that runs here, and of one that does not
TORCH_TOOLS = ("torch", "transformers", "tokenizers", "numpy")
GIB = 1 << 30


def reference_steps(recipe: Recipe, weights: Mapping[str, Step]) -> list[Step]:
    """transformers in float32, over the original weights and over the dequantized ones. Nothing of the library reaches
    them. ``weights``: the steps that make the stored weights."""
    text = Path(recipe.verify.text).expanduser().absolute() if recipe.verify.text else _HELDOUT
    sample = {
        "text": {"name": text.name, "digest": text_digest(text, "verify.text")},
        "tokens": recipe.verify.tokens,
        "window": min(recipe.verify.window, recipe.metadata.context_window_size),
        "logits_bytes": recipe.verify.logits_bytes,
    }
    source = source_inputs(recipe, weights["fetch"])
    resources = Resources(cpu=1, memory_bytes=reference_bytes(recipe))
    reference = Step(
        name="verify.reference",
        function="llm_build.steps.reference:run",
        params=sample,
        recipe_keys=VERIFY_KEYS,
        inputs={**source, **_tokenizer_inputs(recipe, weights["fetch"])},
        context={"text": str(text)},
        tools=TORCH_TOOLS,
        loads="torch",
        resources=resources,
    )
    dequantized = Step(
        name="verify.dequantized",
        function="llm_build.steps.dequantized:run",
        params={**sample, "scheme": scheme_of(recipe.quant), "method": recipe.quant.method},
        recipe_keys=VERIFY_KEYS,
        inputs={
            **source,
            "shards": Input(weights["quantize"].id, "*"),
            "weight_map": Input(weights["convert"].id, "weight_map.json"),
            "parameters": Input(weights["shard"].id, "parameters.json"),
            **({"scales": Input(weights["scales"].id, "*")} if "scales" in weights else {}),
        },
        context={"text": str(text)},
        tools=TORCH_TOOLS,
        loads="torch",
        resources=resources,
    )
    return [reference, dequantized]


def verify_step(recipe: Recipe, references: Sequence[Step], package: Step) -> Step:
    """The check itself. A library that cannot run on this machine is not checked: its weights and its tokenizer are,
    under another name."""
    params = {
        "name": recipe.name,
        "scheme": recipe.quant.name,
        "limits": limits_of(recipe, scheme_of(recipe.quant)),
    }
    inputs = {name: Input(step.id, "*") for name, step in zip(("reference", "dequantized"), references, strict=True)}
    if runs_here(recipe.target, recipe.metadata.tensor_parallel_shards):
        return Step(
            name="verify",
            function="llm_build.steps.verify:run",
            params=params,
            recipe_keys=VERIFY_KEYS,
            inputs={"package": Input(package.id, "*"), **inputs},
            tools=("apache-tvm", "numpy", "tokenizers", "jinja2"),
            validation=True,
            resources=Resources(cpu=1, memory_bytes=running_bytes(recipe)),
            loads="tvm-runtime",
        )
    return Step(
        name="verify.weights",
        function="llm_build.steps.verify_weights:run",
        params={**params, "kind": platform_of(recipe.target)},
        recipe_keys=VERIFY_KEYS,
        inputs={"package": Input(package.id, "*"), **inputs},
        tools=("numpy", "tokenizers", "jinja2"),
        validation=True,
        resources=Resources(cpu=1, memory_bytes=GIB),
    )


def source_inputs(recipe: Recipe, fetch: Step) -> dict[str, Input]:
    """What transformers runs the checkpoint from."""
    inputs = {
        "tensors": Input(fetch.id, "tensor/*"),
        "layout": Input(fetch.id, "layout.json"),
        "config": Input(fetch.id, "file/config.json"),
    }
    if has_tokenizer(recipe.checkpoint.files):
        inputs["tokenizer"] = Input(fetch.id, "file/tokenizer.json")
    return inputs


def _tokenizer_inputs(recipe: Recipe, fetch: Step) -> dict[str, Input]:
    """The files that transformers makes a tokenizer of, and where it reads what ends a text."""
    files = recipe.checkpoint.files
    if not has_tokenizer(files):
        return {}
    generation = {"generation": Input(fetch.id, "file/generation_config.json")}
    return {"source": Input(fetch.id, "source/*"), **(generation if "generation_config.json" in files else {})}


def text_digest(path: Path, key: str) -> str:
    """sha256 of a text, which is small; its path is no identity. ``key``: the recipe's key for it."""
    try:
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read: {error.strerror}", f"{key}=/path/to/a/text/file") from error
