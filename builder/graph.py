"""Recipes -> one Plan. The only file that names every step; none of them is imported here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from builder import architectures
from builder.core.digest import canonical, digest_of_tree
from builder.core.errors import UserError
from builder.core.plan import Goal, Plan
from builder.core.step import Input, Resources, Step
from builder.formats import quantized
from builder.limits import limits_of, trained_of
from builder.platforms import linker_of, platform_of, runs_here, target_of
from builder.quant.methods import CALIBRATED, METHODS
from builder.recipe import Budget, Recipe
from builder.schemes import scheme_of
from builder.sizing import memory_of
from builder.targets import apple, cuda, link, npm, webgpu
from builder.targets.apps import APPS, library_name

DEMO = Path(__file__).resolve().parent / "demo"
HELDOUT, CALIBRATION = DEMO / "heldout.txt", DEMO / "calibration.txt"
TORCH_TOOLS = ("torch", "transformers", "tokenizers", "numpy")
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
    linker = link.identity()
    for recipe in recipes:
        if (other := names.setdefault(recipe.name, recipe)) is not recipe:
            raise UserError(
                f"two builds write to {recipe.name}: {asked(other)} and {asked(recipe)}",
                "give each a name of its own: name=...",
            )
        chain = chain_of(recipe, linker)
        steps |= {step.id: step for step in chain}
        artifact = next((s.id for s in reversed(chain) if s.name in ("package", "web_page", "app")), "")
        goals.append(Goal(recipe.name, tuple(s.id for s in chain), artifact, recipe.undecided))
    return Plan(steps, tuple(goals))


def asked(recipe: Recipe) -> str:
    """The overrides that made a recipe, as they were typed."""
    return " ".join(text.removeprefix("++") for text in recipe.overrides) or "no overrides"


def chain_of(recipe: Recipe, linker: str) -> list[Step]:
    """The steps of one recipe, in the order they are shown; up to `allocate` while its rules are not decided."""
    fetch = fetch_step(recipe)
    convert = convert_step(recipe, fetch)
    start = [fetch, convert, *(budget_steps(recipe, recipe.budget, fetch, convert) if recipe.budget else ())]
    if recipe.undecided:
        return start
    calibrate = [calibrate_step(recipe, fetch, convert)] if recipe.quant.method in CALIBRATED else []
    scales = [scales_step(recipe, fetch, convert, step) for step in calibrate if recipe.quant.method == "awq"]
    shard = shard_step(recipe, convert)
    quantize = quantize_step(recipe, fetch, shard, scales or calibrate)
    lower = lower_step(recipe, linker)
    linked = link_steps(lower) if recipe.target.library == "wasm" else []
    package = package_step(recipe, fetch, shard, quantize, (linked or [lower])[-1])
    chain = [*start, *calibrate, *scales, shard, quantize, lower, *linked, package]
    if recipe.package.kind == "web_page":
        chain += web_page_steps(recipe, package)
    if recipe.package.kind in APPS:
        chain.append(app_step(recipe, package, lower))
    if recipe.verify.enabled:
        chain += verify_steps(recipe, fetch, convert, scales, shard, quantize, package)
    return chain


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
        context=context, tools=TORCH_TOOLS, resources=Resources(cpu=ALL_CORES, memory_bytes=3 * GIB),
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
        context=context, tools=TORCH_TOOLS, resources=Resources(cpu=1, memory_bytes=2 * GIB),
    ))  # fmt: skip


def scales_step(recipe: Recipe, fetch: Step, convert: Step, calibrate: Step) -> Step:
    return named(Step(
        id="", name="scales", function="builder.steps.scales:run", params={"scheme": scheme_of(recipe.quant)},
        inputs={
            "weight_map": Input(convert.id, "weight_map.json"), "tensors": Input(fetch.id, "tensor/*"),
            "moments": Input(calibrate.id, "moments/*"),
        },
        tools=("numpy",), resources=Resources(cpu=1, memory_bytes=GIB // 2 + 2 * 4 * widest_input(recipe) ** 2),
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
        memory_bytes += 6 * 8 * widest_input(recipe) ** 2  # the factor of the moments, in float64, with its scratch
    code = METHODS.get(recipe.quant.method)
    return named(Step(
        id="", name="quantize", function="builder.steps.quantize:run",
        params={"allow_nonfinite": recipe.model.allow_nonfinite, "method": method},
        inputs=inputs, expand="shards", tools=("numpy",), code=(*((code,) if code else ()), *format_of(recipe)),
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
            "target": target_of(recipe.target), "metadata": asdict(recipe.metadata),
            **({"linker": linker_of(recipe.target, linker)} if recipe.target.library == "so" else {}),
            **({"compiler": cuda.identity()} if recipe.target.kind == "cuda" else {}),
            **({"kernels": apple.identity()} if recipe.target.kind == "metal" else {}),
        },
        tools=("apache-tvm",), code=(architectures.FAMILIES[recipe.family], f"builder.models.{recipe.family}"),
        resources=Resources(cpu=1, memory_bytes=2 * GIB),
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


def package_step(recipe: Recipe, fetch: Step, shard: Step, quantize: Step, library: Step) -> Step:
    """``library``: the step that made it."""
    ending, metadata = recipe.target.library, asdict(recipe.metadata)
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
            "shards": Input(quantize.id, "*"), "library": Input(library.id, f"library.{ending}"),
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


def verify_steps(
    recipe: Recipe, fetch: Step, convert: Step, scales: Sequence[Step], shard: Step, quantize: Step, package: Step
) -> list[Step]:
    """The two references and the check itself. Nothing of the library reaches the references. A library that cannot run
    on this machine is not checked: its weights are, under another name."""
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
            **({"scales": Input(scales[0].id, "*")} if scales else {}),
        },
        context={"text": str(text)}, tools=TORCH_TOOLS, resources=resources,
    ))  # fmt: skip
    judged = {
        "name": recipe.name, "scheme": recipe.quant.name, "limits": limits_of(recipe, scheme),
        "trained": trained_of(recipe),
    }  # fmt: skip
    references = {"reference": Input(reference.id, "*"), "dequantized": Input(dequantized.id, "*")}
    if runs_here(recipe.target):
        verify = named(Step(
            id="", name="verify", function="builder.steps.verify:run", params=judged,
            inputs={"package": Input(package.id, "*"), **references},
            tools=("apache-tvm", "numpy"), validation=True, resources=Resources(cpu=1, memory_bytes=GIB),
        ))  # fmt: skip
    else:
        verify = named(Step(
            id="", name="verify.weights", function="builder.steps.verify_weights:run",
            params={**judged, "kind": platform_of(recipe.target)}, inputs=references,
            tools=("numpy",), validation=True, resources=Resources(cpu=1, memory_bytes=GIB),
        ))  # fmt: skip
    return [reference, dequantized, verify]


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
            resources=Resources(cpu=ALL_CORES, memory_bytes=2 * GIB, gpu=int(recipe.target.kind != "cpu")),
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
