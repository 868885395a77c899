"""The steps that make the stored weights; the same for every target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llm_build
from llm_build import architectures
from llm_build.config.schema import Budget, Checkpoint, Recipe
from llm_build.core.step import Input, Resources, Step
from llm_build.formats import quantized
from llm_build.formats.checkpoint import has_tokenizer
from llm_build.planner.graph.recipe_keys import CALIBRATION_KEYS, RECIPE_KEYS, SENSITIVITY_KEYS
from llm_build.planner.graph.step_resources import model_size, moments_bytes, reference_bytes
from llm_build.planner.graph.verify import TORCH_TOOLS, source_inputs, text_digest
from llm_build.planner.schemes.schemes import scheme_of
from llm_build.quant.methods import CALIBRATED, METHODS

_SEARCHING = ("mse", "awq")  # whose search may be compiled
_CALIBRATION = Path(llm_build.__file__).resolve().parent / "demo" / "calibration.txt"
_GIB = 1 << 30
_ALL_CORES = 1 << 10  # cut to what there is


def weight_steps(recipe: Recipe) -> dict[str, Step]:
    """What makes the stored weights, by name."""
    fetch = _fetch_step(recipe)
    convert = _convert_step(recipe, fetch)
    steps = [fetch, convert, *(_budget_steps(recipe, recipe.budget, fetch, convert) if recipe.budget else ())]
    if not recipe.undecided:
        calibrate = [_calibrate_step(recipe, fetch, convert)] if recipe.quant.method in CALIBRATED else []
        scales = [_scales_step(recipe, fetch, convert, step) for step in calibrate if recipe.quant.method == "awq"]
        shard = _shard_step(recipe, convert)
        steps += [*calibrate, *scales, shard, _quantize_step(recipe, fetch, shard, scales or calibrate)]
    return {step.name: step for step in steps}


def _fetch_step(recipe: Recipe) -> Step:
    checkpoint = recipe.checkpoint
    here = [name for name in checkpoint.files if name not in checkpoint.missing]
    params: dict[str, Any] = {"format": checkpoint.format, "pin": recipe.pins.checkpoint}
    if checkpoint.missing:  # only a plan sees this: a build downloads them first
        params["to_download"] = list(checkpoint.missing)
    return Step(
        name="fetch",
        function="llm_build.steps.fetch:run",
        params=params,
        recipe_keys=RECIPE_KEYS,
        watch={name: str(checkpoint.root / name) for name in here},
        tools=_fetch_tools(checkpoint),
        loads="torch" if checkpoint.format == "bin" else "",
        role="source",
    )


def _fetch_tools(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What reads pickles, and what puts a tokenizer together."""
    torch = ("torch",) if checkpoint.format == "bin" else ()
    if not has_tokenizer(checkpoint.files):
        return torch
    return (*torch, "tokenizers") if "tokenizer.json" in checkpoint.files else (*torch, "transformers", "tokenizers")


def _convert_step(recipe: Recipe, fetch: Step) -> Step:
    packing = {"packing": dict(recipe.quant.packing)} if recipe.quant.packing else {}
    return Step(
        name="convert",
        function="llm_build.steps.convert:run",
        params={"family": recipe.family, "architecture": dict(recipe.architecture), **packing},
        recipe_keys=RECIPE_KEYS,
        inputs={"layout": Input(fetch.id, "layout.json")},
        code=(architectures.FAMILIES[recipe.family], *_format_of(recipe)),
    )


def _format_of(recipe: Recipe) -> tuple[str, ...]:
    """The module that reads a quantized checkpoint."""
    return (quantized.METHODS[recipe.quant.packing["method"]],) if recipe.quant.packing else ()


def _shard_step(recipe: Recipe, convert: Step) -> Step:
    return Step(
        name="shard",
        function="llm_build.steps.shard:run",
        params={
            "scheme": scheme_of(recipe.quant),
            "max_shard_bytes": recipe.quant.max_shard_bytes,
            "moments": recipe.quant.method == "gptq",
            "scales": recipe.quant.method == "awq",
        },
        recipe_keys=RECIPE_KEYS,
        inputs={"weight_map": Input(convert.id, "weight_map.json")},
    )


def _budget_steps(recipe: Recipe, budget: Budget, fetch: Step, convert: Step) -> list[Step]:
    """What measures the candidates, once for all budgets of a model, and what picks the rules."""
    context, text = _calibration_text(recipe)
    weight_map = Input(convert.id, "weight_map.json")
    tables = {name: dict(table) for name, table in budget.candidates.items()}
    sensitivity = Step(
        name="sensitivity",
        function="llm_build.steps.sensitivity:run",
        params={
            "schemes": tables,
            "text": text,
            "tokens": recipe.quant.sensitivity_tokens,
            "window": recipe.quant.calibration.window,
        },
        recipe_keys=SENSITIVITY_KEYS,
        inputs={**source_inputs(recipe, fetch), "weight_map": weight_map},
        context=context,
        tools=TORCH_TOOLS,
        loads="torch",
        resources=Resources(cpu=_ALL_CORES, memory_bytes=_GIB + reference_bytes(recipe)),
        locked_params=("text",),
    )
    own = scheme_of(replace(recipe.quant, rules=()))
    allocate = Step(
        name="allocate",
        function="llm_build.steps.allocate:run",
        params={"budget": budget.bits, "scheme": own, "candidates": tables},
        recipe_keys=RECIPE_KEYS,
        inputs={"weight_map": weight_map, "sensitivity": Input(sensitivity.id, "sensitivity.json")},
        tools=("numpy",),
        role="decision",
    )
    return [sensitivity, allocate]


def _calibration_text(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where the calibration text is, which is no identity, and what is: its name and content."""
    own = recipe.quant.calibration.text
    text = Path(own).expanduser().absolute() if own else _CALIBRATION
    return {"text": str(text)}, {"name": text.name, "digest": text_digest(text, "quant.calibration.text")}


def _calibrate_step(recipe: Recipe, fetch: Step, convert: Step) -> Step:
    """Reads no scheme: one calibration serves all schemes of a model."""
    calibration = recipe.quant.calibration
    context, text = _calibration_text(recipe)
    return Step(
        name="calibrate",
        function="llm_build.steps.calibrate:run",
        params={"text": text, "tokens": calibration.tokens, "window": calibration.window},
        recipe_keys=CALIBRATION_KEYS,
        inputs={**source_inputs(recipe, fetch), "weight_map": Input(convert.id, "weight_map.json")},
        context=context,
        tools=TORCH_TOOLS,
        loads="torch",
        resources=Resources(cpu=1, memory_bytes=reference_bytes(recipe) + moments_bytes(recipe)),
        locked_params=("text",),
    )


def _scales_step(recipe: Recipe, fetch: Step, convert: Step, calibrate: Step) -> Step:
    return Step(
        name="scales",
        function="llm_build.steps.scales:run",
        params={"scheme": scheme_of(recipe.quant)},
        recipe_keys=RECIPE_KEYS,
        inputs={
            "weight_map": Input(convert.id, "weight_map.json"),
            "tensors": Input(fetch.id, "tensor/*"),
            "moments": Input(calibrate.id, "moments/*"),
        },
        tools=("numpy",),
        resources=Resources(cpu=1, memory_bytes=_GIB // 2 + moments_bytes(recipe)),
    )


def _quantize_step(recipe: Recipe, fetch: Step, shard: Step, measured: Sequence[Step]) -> Step:
    """``measured``: scales or calibrate, where the method reads one of them."""
    inputs = {"shards": Input(shard.id, "shards.json"), "tensors": Input(fetch.id, "tensor/*")}
    method: dict[str, Any] = {"name": recipe.quant.method}
    memory_bytes = _GIB // 4
    for step in measured:  # none or one
        if recipe.quant.method == "awq":
            inputs["scales"] = Input(step.id, "*")
            continue
        inputs["moments"] = Input(step.id, "moments/*")
        method["damping"] = recipe.quant.damping
        memory_bytes += (
            6 * 8 * model_size(recipe).widest ** 2
        )  # the factor of the moments, in float64, with its scratch
    code = METHODS.get(recipe.quant.method)
    return Step(
        name="quantize",
        function="llm_build.steps.quantize:run",
        params={"allow_nonfinite": recipe.model.allow_nonfinite, "method": method},
        recipe_keys=RECIPE_KEYS,
        inputs=inputs,
        expand="shards",
        tools=("numpy",),
        code=(*((code,) if code else ()), *_format_of(recipe)),
        loads="tvm-compiler" if recipe.quant.method in _SEARCHING else "",
        resources=Resources(cpu=1, memory_bytes=memory_bytes),
    )
