"""Recipes -> one Plan. This file, graph_shards and graph_verify alone name steps; none of them is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import builder
from builder import architectures
from builder.config.schema import Budget, Recipe
from builder.config.strict import plain
from builder.core.digest import digest_of_tree
from builder.core.errors import UserError
from builder.core.plan import Goal, Plan
from builder.core.step import Input, Resources, Step
from builder.formats import quantized
from builder.planner.cell_memo import Once
from builder.planner.feasibility.platforms import gpus_of, linker_of, target_of
from builder.planner.feasibility.sizing import memory_of
from builder.planner.graph.naming import named
from builder.planner.graph.placement import placed
from builder.planner.graph.ranks import rank_steps
from builder.planner.graph.step_resources import extent, lowering_bytes, moments_bytes, reference_bytes, running_bytes
from builder.planner.graph.verify import TORCH_TOOLS, reference_steps, source_inputs, text_digest, verify_step
from builder.planner.schemes.schemes import scheme_of
from builder.quant.methods import CALIBRATED, METHODS
from builder.targets import apple, cuda, link, npm, webgpu
from builder.targets.apps import APPS, library_name

DEMO = Path(builder.__file__).resolve().parent / "demo"
CALIBRATION = DEMO / "calibration.txt"
WEB_PAGE = DEMO.parent / "web_page"
GIB = 1 << 30
ALL_CORES = 1 << 10  # cut to what there is
BENCH = {"prompt": 256, "contexts": [8, 512]}  # tokens; decoding is measured near the end of the context too


def build_plan(recipes: Sequence[Recipe]) -> Plan:
    """One plan for all recipes: a step that several of them need is in it once.

    Raises UserError when two recipes write to one folder.
    """
    steps: dict[str, Step] = {}
    goals: list[Goal] = []
    names: dict[str, Recipe] = {}
    linker, once = link.identity(), Once()
    for recipe in recipes:
        if (other := names.setdefault(recipe.name, recipe)) is not recipe:
            raise UserError(
                f"two builds write to {recipe.name}: {asked(other)} and {asked(recipe)}",
                "give each a name of its own: name=...",
            )
        chain = chain_of(recipe, linker, once)
        steps |= {step.id: step for step in chain}
        artifact = next((s.id for s in reversed(chain) if s.name in ("package", "web_page", "app")), "")
        goals.append(Goal(recipe.name, tuple(s.id for s in chain), artifact, recipe.undecided))
    return Plan(steps, tuple(goals))


def asked(recipe: Recipe) -> str:
    """The overrides that made a recipe, as they were typed."""
    return " ".join(text.removeprefix("++") for text in recipe.overrides) or "no overrides"


def chain_of(recipe: Recipe, linker: str, once: Once) -> list[Step]:
    """The steps of one recipe, in the order they are shown; up to `allocate` while its rules are not decided."""
    own = (recipe.model, recipe.quant, recipe.pins, recipe.architecture, recipe.checkpoint, recipe.budget)
    of = (*own, recipe.verify, *astuple(recipe.metadata), recipe.undecided)  # not the target, and no name
    weights = once("weights", of, lambda: weight_steps(recipe))
    if recipe.undecided:
        return list(weights.values())
    fetch, shard, quantize = (weights[name] for name in ("fetch", "shard", "quantize"))
    lower = lower_step(recipe, linker)
    linked = link_steps(lower) if recipe.target.library == "wasm" else []
    ranks = rank_steps(recipe, shard, quantize)
    package = package_step(recipe, fetch, shard, (ranks or [quantize])[-1], (linked or [lower])[-1])
    chain = [*weights.values(), *ranks, lower, *linked, package]
    if recipe.package.kind == "web_page":
        chain += web_page_steps(recipe, package)
    if recipe.package.kind in APPS:
        chain.append(app_step(recipe, package, lower))
    if recipe.verify.enabled:
        references = once("references", of, lambda: reference_steps(recipe, weights))
        chain += [*references, verify_step(recipe, references, package)]
    return placed(chain, recipe)


def weight_steps(recipe: Recipe) -> dict[str, Step]:
    """What makes the stored weights, by name; the same for every target."""
    fetch = fetch_step(recipe)
    convert = convert_step(recipe, fetch)
    steps = [fetch, convert, *(budget_steps(recipe, recipe.budget, fetch, convert) if recipe.budget else ())]
    if not recipe.undecided:
        calibrate = [calibrate_step(recipe, fetch, convert)] if recipe.quant.method in CALIBRATED else []
        scales = [scales_step(recipe, fetch, convert, step) for step in calibrate if recipe.quant.method == "awq"]
        shard = shard_step(recipe, convert)
        steps += [*calibrate, *scales, shard, quantize_step(recipe, fetch, shard, scales or calibrate)]
    return {step.name: step for step in steps}


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
        params={"family": recipe.family, "architecture": dict(recipe.architecture), **packing_of(recipe)},
        inputs={"layout": Input(fetch.id, "layout.json")},
        code=(architectures.FAMILIES[recipe.family], *format_of(recipe)),
    ))  # fmt: skip


def packing_of(recipe: Recipe) -> dict[str, Any]:
    return {"packing": dict(recipe.quant.packing)} if recipe.quant.packing else {}


def format_of(recipe: Recipe) -> tuple[str, ...]:
    """The module that reads a quantized checkpoint."""
    return (quantized.METHODS[recipe.quant.packing["method"]],) if recipe.quant.packing else ()


def shard_step(recipe: Recipe, convert: Step) -> Step:
    return named(Step(
        id="", name="shard", function="builder.steps.shard:run",
        params={
            "scheme": scheme_of(recipe.quant), "max_shard_bytes": recipe.quant.max_shard_bytes,
            "moments": recipe.quant.method == "gptq", "scales": recipe.quant.method == "awq",
        },
        inputs={"weight_map": Input(convert.id, "weight_map.json")},
    ))  # fmt: skip


def budget_steps(recipe: Recipe, budget: Budget, fetch: Step, convert: Step) -> list[Step]:
    """What measures the candidates, once for all budgets of a model, and what picks the rules."""
    context, text = calibration_text(recipe)
    weight_map = Input(convert.id, "weight_map.json")
    tables = {name: dict(table) for name, table in budget.candidates.items()}
    sensitivity = named(Step(
        id="", name="sensitivity", function="builder.steps.sensitivity:run",
        params={
            "schemes": tables, "text": text, "tokens": recipe.quant.sensitivity_tokens,
            "window": recipe.quant.calibration.window,
        },
        inputs={**source_inputs(recipe, fetch), "weight_map": weight_map},
        context=context, tools=TORCH_TOOLS,
        resources=Resources(cpu=ALL_CORES, memory_bytes=GIB + reference_bytes(recipe)),
    ))  # fmt: skip
    allocate = named(Step(
        id="", name="allocate", function="builder.steps.allocate:run",
        params={
            "budget": budget.bits, "scheme": scheme_of(replace(recipe.quant, rules=())), "candidates": tables,
        },
        inputs={"weight_map": weight_map, "sensitivity": Input(sensitivity.id, "sensitivity.json")}, tools=("numpy",),
    ))  # fmt: skip
    return [sensitivity, allocate]


def calibration_text(recipe: Recipe) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where the calibration text is, which is no identity, and what is: its name and content."""
    given = recipe.quant.calibration.text
    text = Path(given).expanduser().absolute() if given else CALIBRATION
    return {"text": str(text)}, {"name": text.name, "digest": text_digest(text, "quant.calibration.text")}


def calibrate_step(recipe: Recipe, fetch: Step, convert: Step) -> Step:
    """Reads no scheme: one calibration serves all schemes of a model."""
    given = recipe.quant.calibration
    context, text = calibration_text(recipe)
    return named(Step(
        id="", name="calibrate", function="builder.steps.calibrate:run",
        params={"text": text, "tokens": given.tokens, "window": given.window},
        inputs={**source_inputs(recipe, fetch), "weight_map": Input(convert.id, "weight_map.json")},
        context=context, tools=TORCH_TOOLS,
        resources=Resources(cpu=1, memory_bytes=reference_bytes(recipe) + moments_bytes(recipe)),
    ))  # fmt: skip


def scales_step(recipe: Recipe, fetch: Step, convert: Step, calibrate: Step) -> Step:
    return named(Step(
        id="", name="scales", function="builder.steps.scales:run", params={"scheme": scheme_of(recipe.quant)},
        inputs={
            "weight_map": Input(convert.id, "weight_map.json"), "tensors": Input(fetch.id, "tensor/*"),
            "moments": Input(calibrate.id, "moments/*"),
        },
        tools=("numpy",), resources=Resources(cpu=1, memory_bytes=GIB // 2 + moments_bytes(recipe)),
    ))  # fmt: skip


def quantize_step(recipe: Recipe, fetch: Step, shard: Step, measured: Sequence[Step]) -> Step:
    """``measured``: scales or calibrate, where the method reads one of them."""
    inputs = {"shards": Input(shard.id, "shards.json"), "tensors": Input(fetch.id, "tensor/*")}
    method: dict[str, Any] = {"name": recipe.quant.method}
    memory_bytes = GIB // 4
    for step in measured:  # none or one
        if recipe.quant.method == "awq":
            inputs["scales"] = Input(step.id, "*")
            continue
        inputs["moments"] = Input(step.id, "moments/*")
        method["damping"] = recipe.quant.damping
        memory_bytes += 6 * 8 * extent(recipe).widest ** 2  # the factor of the moments, in float64, with its scratch
    code = METHODS.get(recipe.quant.method)
    return named(Step(
        id="", name="quantize", function="builder.steps.quantize:run",
        params={"allow_nonfinite": recipe.model.allow_nonfinite, "method": method},
        inputs=inputs, expand="shards", tools=("numpy",), code=(*((code,) if code else ()), *format_of(recipe)),
        resources=Resources(cpu=1, memory_bytes=memory_bytes),
    ))  # fmt: skip


def lower_step(recipe: Recipe, linker: str) -> Step:
    return named(Step(
        id="", name="lower", function="builder.steps.lower:run",
        params={
            "family": recipe.family, "architecture": dict(recipe.architecture), "scheme": scheme_of(recipe.quant),
            "target": target_of(recipe.target), "metadata": plain(recipe.metadata),
            **({"linker": linker_of(recipe.target, linker)} if recipe.target.library == "so" else {}),
            **({"compiler": cuda.identity()} if recipe.target.kind == "cuda" else {}),
            **({"kernels": apple.identity()} if recipe.target.kind == "metal" else {}),
        },
        tools=("apache-tvm",), code=(architectures.FAMILIES[recipe.family], f"builder.models.{recipe.family}"),
        resources=Resources(cpu=1, memory_bytes=lowering_bytes(recipe)),
    ))  # fmt: skip


def link_steps(lower: Step) -> list[Step]:
    """TVM's runtime for browsers, and the model's objects linked with it."""
    identity = webgpu.identity()
    runtime = named(Step(
        id="", name="runtime.wasm", function="builder.steps.runtime:run", params=identity,
        tools=("apache-tvm", "apache-tvm-ffi"), resources=Resources(cpu=1, memory_bytes=2 * GIB),
    ))  # fmt: skip
    linking = named(Step(
        id="", name="link", function="builder.steps.link:run", params={"emscripten": identity["emscripten"]},
        inputs={
            "objects": Input(lower.id, "library.tar"), "metadata": Input(lower.id, "metadata.json"),
            "runtime": Input(runtime.id, "*"),
        },
    ))  # fmt: skip
    return [runtime, linking]


def package_step(recipe: Recipe, fetch: Step, shard: Step, weights: Step, library: Step) -> Step:
    """``weights``, ``library``: the steps that made them."""
    ending, metadata = recipe.target.library, plain(recipe.metadata)
    if recipe.target.kind == "webgpu":  # WebLLM takes no window beside a context; the kernels have it, whatever it says
        metadata |= {"sliding_window_size": -1, "attention_sink_size": 0}
    return named(Step(
        id="", name="package", function="builder.steps.package:run",
        params={
            "name": recipe.name, "library": f"{recipe.name}.{ending}", "family": recipe.family,
            "architecture": dict(recipe.architecture), "scheme": scheme_of(recipe.quant),
            "metadata": metadata, "conv_template": recipe.model.conv_template,
        },
        inputs={
            "shards": Input(weights.id, "*"), "library": Input(library.id, f"library.{ending}"),
            "files": Input(fetch.id, "file/*"), "parameters": Input(shard.id, "parameters.json"),
        },
        tools=("jinja2",), code=(architectures.FAMILIES[recipe.family],),
    ))  # fmt: skip


def web_page_steps(recipe: Recipe, package: Step) -> list[Step]:
    """A page around an artifact for browsers."""
    engine = named(Step(
        id="", name="web_page.engine", function="builder.steps.web_llm:run", params=asdict(npm.WEB_LLM),
    ))  # fmt: skip
    page = named(Step(
        id="", name="web_page", function="builder.steps.web_page:run",
        params={
            "name": recipe.name, "library": f"{recipe.name}.{recipe.target.library}", "family": recipe.family,
            "scheme": recipe.quant.name, "template": digest_of_tree(WEB_PAGE),
        },
        inputs={"package": Input(package.id, "*"), "engine": Input(engine.id, "*")},
    ))  # fmt: skip
    return [engine, page]


def app_step(recipe: Recipe, package: Step, lower: Step) -> Step:
    """What an app's project includes."""
    return named(Step(
        id="", name="app", function="builder.steps.app:run",
        params={
            "name": recipe.name, "kind": recipe.package.kind, "library": f"{recipe.name}.{recipe.target.library}",
            "model_lib": library_name(lower.params), "memory_bytes": memory_of(recipe).total,
        },
        inputs={"package": Input(package.id, "*")},
    ))  # fmt: skip


def bench_plan(recipes: Sequence[tuple[Recipe, Mapping[str, Any]]], plan: Plan) -> Plan:
    """What measures the artifacts of some recipes of ``plan``, each on the machine beside it, which is this one.

    A build never plans it: an artifact is whole without it, and build.json knows nothing of it. Each has a goal of its
    own, bench_goal(name)."""
    goals = {goal.name: goal for goal in plan.goals}
    steps: dict[str, Step] = {}
    measured = []
    for recipe, machine in recipes:
        package = next(id_ for id_ in goals[recipe.name].steps if plan.steps[id_].name == "package")
        bench = named(Step(
            id="", name="bench", function="builder.steps.bench:run", params={"machine": machine, **BENCH},
            inputs={"package": Input(package, "*")}, tools=("apache-tvm", "numpy"), validation=True,
            resources=Resources(cpu=ALL_CORES, memory_bytes=running_bytes(recipe), gpu=gpus_of(recipe)),
        ))  # fmt: skip
        steps |= {bench.id: bench, **needed_by(bench, plan)}
        measured.append(Goal(bench_goal(recipe.name), (bench.id,)))
    return Plan(steps, tuple(measured))


def needed_by(step: Step, plan: Plan) -> dict[str, Step]:
    """All that a step is made from, directly or not."""
    ids = [source.step for source in step.inputs.values()]
    for id_ in ids:  # grows while it is walked
        ids += [source.step for source in plan.steps[id_].inputs.values() if source.step not in ids]
    return {id_: plan.steps[id_] for id_ in ids}


def bench_goal(name: str) -> str:
    """Under which the store keeps the last measurement of an artifact."""
    return f"{name} bench"
