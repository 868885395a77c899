"""Recipes -> one Plan. The only file that names every step; none of them is imported here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from builder import architectures
from builder.core.digest import canonical
from builder.core.errors import UserError
from builder.core.plan import Goal, Plan
from builder.core.step import Input, Resources, Step
from builder.quant.methods import METHODS
from builder.recipe import Recipe
from builder.schemes import scheme_of
from builder.targets import link
from builder.verification.limits import choose

DEMO = Path(__file__).resolve().parent / "demo"
HELDOUT, CALIBRATION = DEMO / "heldout.txt", DEMO / "calibration.txt"
TORCH_TOOLS = ("torch", "transformers", "tokenizers", "numpy")
GIB = 1 << 30


def build_plan(recipes: Sequence[Recipe]) -> Plan:
    """One plan for all recipes: a step that several of them need is in it once.

    Raises UserError when two recipes write to one folder.
    """
    steps: dict[str, Step] = {}
    goals: list[Goal] = []
    names: dict[str, Recipe] = {}
    linker = link.identity()
    for recipe in recipes:
        if (other := names.setdefault(recipe.name, recipe)) is not recipe:
            raise UserError(
                f"two builds write to {recipe.name}: {asked(other)} and {asked(recipe)}",
                "give each a name of its own: name=...",
            )
        chain = chain_of(recipe, linker)
        steps |= {step.id: step for step in chain}
        artifact = next(s.id for s in chain if s.name == "package")
        goals.append(Goal(recipe.name, tuple(s.id for s in chain), artifact))
    return Plan(steps, tuple(goals))


def asked(recipe: Recipe) -> str:
    """The overrides that made a recipe, as they were typed."""
    return " ".join(text.removeprefix("++") for text in recipe.overrides) or "no overrides"


def chain_of(recipe: Recipe, linker: str) -> list[Step]:
    """The steps of one recipe, in the order they are shown."""
    fetch = fetch_step(recipe)
    convert = convert_step(recipe, fetch)
    calibrate = [calibrate_step(recipe, fetch, convert)] if recipe.quant.method == "gptq" else []
    shard = shard_step(recipe, convert)
    quantize = quantize_step(recipe, fetch, shard, calibrate)
    lower = lower_step(recipe, linker)
    package = package_step(recipe, fetch, shard, quantize, lower)
    chain = [fetch, convert, *calibrate, shard, quantize, lower, package]
    return chain + verify_steps(recipe, fetch, convert, shard, quantize, package) if recipe.verify.enabled else chain


def named(step: Step) -> Step:
    """The step with an id made of all that defines it, so that equal steps of two recipes are one."""
    inputs = {port: [i.step, i.output] for port, i in step.inputs.items()}
    whole = [step.function, dict(step.params), inputs, dict(step.watch), dict(step.context), step.tools, step.code]
    return replace(step, id=f"{step.name}-{hashlib.sha256(canonical(whole)).hexdigest()[:12]}")


def fetch_step(recipe: Recipe) -> Step:
    found = recipe.checkpoint
    here = [name for name in found.files if name not in found.missing]
    params: dict[str, Any] = {"format": found.format, "pin": recipe.pins.checkpoint}
    if found.missing:  # only a plan sees this: a build downloads them first
        params["to_download"] = list(found.missing)
    return named(Step(
        id="", name="fetch", function="builder.steps.fetch:run",
        params=params,
        watch={name: str(found.root / name) for name in here},
        tools=("torch",) if found.format == "bin" else (),
    ))  # fmt: skip


def convert_step(recipe: Recipe, fetch: Step) -> Step:
    return named(Step(
        id="", name="convert", function="builder.steps.convert:run",
        params={"family": recipe.family, "architecture": dict(recipe.architecture)},
        inputs={"layout": Input(fetch.id, "layout.json")},
        code=(architectures.FAMILIES[recipe.family],),
    ))  # fmt: skip


def shard_step(recipe: Recipe, convert: Step) -> Step:
    return named(Step(
        id="", name="shard", function="builder.steps.shard:run",
        params={
            "scheme": scheme_of(recipe.quant), "max_shard_bytes": recipe.quant.max_shard_bytes,
            "moments": recipe.quant.method == "gptq",
        },
        inputs={"weight_map": Input(convert.id, "weight_map.json")},
    ))  # fmt: skip


def calibrate_step(recipe: Recipe, fetch: Step, convert: Step) -> Step:
    """Reads no scheme: one calibration serves all schemes of a model."""
    given = recipe.quant.calibration
    text = Path(given.text).expanduser().absolute() if given.text else CALIBRATION
    return named(Step(
        id="", name="calibrate", function="builder.steps.calibrate:run",
        params={
            "text": {"name": text.name, "digest": text_digest(text, "quant.calibration.text")},
            "tokens": given.tokens, "window": given.window,
        },
        inputs={**source_inputs(recipe, fetch), "weight_map": Input(convert.id, "weight_map.json")},
        context={"text": str(text)}, tools=TORCH_TOOLS, resources=Resources(cpu=1, memory_bytes=2 * GIB),
    ))  # fmt: skip


def quantize_step(recipe: Recipe, fetch: Step, shard: Step, calibrate: Sequence[Step]) -> Step:
    inputs = {"shards": Input(shard.id, "shards.json"), "tensors": Input(fetch.id, "tensor/*")}
    method: dict[str, Any] = {"name": recipe.quant.method}
    memory_bytes = GIB // 4
    for step in calibrate:  # none or one
        inputs["moments"] = Input(step.id, "moments/*")
        method["damping"] = recipe.quant.damping
        memory_bytes += 6 * 8 * widest_input(recipe) ** 2  # the factor of the moments, in float64, with its scratch
    code = METHODS.get(recipe.quant.method)
    return named(Step(
        id="", name="quantize", function="builder.steps.quantize:run",
        params={"allow_nonfinite": recipe.model.allow_nonfinite, "method": method},
        inputs=inputs, expand="shards", tools=("numpy",), code=(code,) if code else (),
        resources=Resources(cpu=1, memory_bytes=memory_bytes),
    ))  # fmt: skip


def widest_input(recipe: Recipe) -> int:
    """Inputs of the widest linear layer."""
    module = architectures.load(recipe.family)
    table = module.parameters(module.from_architecture(recipe.architecture))
    return max(parameter.shape[-1] for parameter in table if parameter.kind in ("linear", "head"))


def lower_step(recipe: Recipe, linker: str) -> Step:
    return named(Step(
        id="", name="lower", function="builder.steps.lower:run",
        params={
            "family": recipe.family, "architecture": dict(recipe.architecture), "scheme": scheme_of(recipe.quant),
            "target": target_of(recipe), "metadata": asdict(recipe.metadata), "linker": linker,
        },
        tools=("apache-tvm",), code=(architectures.FAMILIES[recipe.family], f"builder.models.{recipe.family}"),
        resources=Resources(cpu=1, memory_bytes=2 * GIB),
    ))  # fmt: skip


def target_of(recipe: Recipe) -> dict[str, Any]:
    target = asdict(recipe.target)
    return {**target, "features": list(target["features"] or ())}


def package_step(recipe: Recipe, fetch: Step, shard: Step, quantize: Step, lower: Step) -> Step:
    return named(Step(
        id="", name="package", function="builder.steps.package:run",
        params={
            "name": recipe.name, "library": f"{recipe.name}.so", "family": recipe.family,
            "architecture": dict(recipe.architecture), "scheme": scheme_of(recipe.quant),
            "metadata": asdict(recipe.metadata), "conv_template": recipe.model.conv_template,
        },
        inputs={
            "shards": Input(quantize.id, "*"), "library": Input(lower.id, "library.so"),
            "files": Input(fetch.id, "file/*"), "parameters": Input(shard.id, "parameters.json"),
        },
        tools=("jinja2",), code=(architectures.FAMILIES[recipe.family],),
    ))  # fmt: skip


def verify_steps(recipe: Recipe, fetch: Step, convert: Step, shard: Step, quantize: Step, package: Step) -> list[Step]:
    """The two references and the check itself. Nothing of the library reaches the references."""
    text = Path(recipe.verify.text).expanduser().absolute() if recipe.verify.text else HELDOUT
    sample = {
        "text": {"name": text.name, "digest": text_digest(text, "verify.text")},
        "tokens": recipe.verify.tokens,
        "window": min(recipe.verify.window, recipe.metadata.context_window_size),
        "logits_bytes": recipe.verify.logits_bytes,
    }
    source = source_inputs(recipe, fetch)
    resources = Resources(cpu=1, memory_bytes=2 * GIB)
    reference = named(Step(
        id="", name="verify.reference", function="builder.steps.reference:run", params=sample, inputs=source,
        context={"text": str(text)}, tools=TORCH_TOOLS, resources=resources,
    ))  # fmt: skip
    scheme = scheme_of(recipe.quant)
    dequantized = named(Step(
        id="", name="verify.dequantized", function="builder.steps.dequantized:run",
        params={**sample, "scheme": scheme, "method": recipe.quant.method},
        inputs={
            **source, "shards": Input(quantize.id, "*"), "weight_map": Input(convert.id, "weight_map.json"),
            "parameters": Input(shard.id, "parameters.json"),
        },
        context={"text": str(text)}, tools=TORCH_TOOLS, resources=resources,
    ))  # fmt: skip
    verify = named(Step(
        id="", name="verify", function="builder.steps.verify:run",
        params={"name": recipe.name, "scheme": recipe.quant.name, "limits": limits_of(recipe, scheme)},
        inputs={
            "package": Input(package.id, "*"), "reference": Input(reference.id, "*"),
            "dequantized": Input(dequantized.id, "*"),
        },
        tools=("apache-tvm", "numpy"), validation=True, resources=Resources(cpu=1, memory_bytes=GIB),
    ))  # fmt: skip
    return [reference, dequantized, verify]


def limits_of(recipe: Recipe, scheme: Mapping[str, Any]) -> dict[str, float]:
    given = recipe.verify
    over = {k: getattr(given, k) for k in ("max_error", "rms_error", "kl", "top1", "perplexity")}
    exact = {"exact_max": given.exact_max, "exact_rms": given.exact_rms}
    return choose(scheme, {name: asdict(limits) for name, limits in given.limits.items()}, over, exact)


def source_inputs(recipe: Recipe, fetch: Step) -> dict[str, Input]:
    """What transformers runs the checkpoint from."""
    inputs = {
        "tensors": Input(fetch.id, "tensor/*"),
        "layout": Input(fetch.id, "layout.json"),
        "config": Input(fetch.id, "file/config.json"),
    }
    if "tokenizer.json" in recipe.checkpoint.files:
        inputs["tokenizer"] = Input(fetch.id, "file/tokenizer.json")
    return inputs


def text_digest(path: Path, key: str) -> str:
    """sha256 of a text, which is small; its path is no identity. ``key``: the recipe's key for it."""
    try:
        return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read: {error.strerror}", f"{key}=/path/to/a/text/file") from error
