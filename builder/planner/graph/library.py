"""The steps that make the library."""

from __future__ import annotations

from llm_build import architectures
from llm_build.config.schema import Recipe
from llm_build.config.strict import as_plain_data
from llm_build.core.step import Input, Resources, Step
from llm_build.lowering.kernel_modules import modules_of
from llm_build.planner.feasibility.platforms import linker_of, target_of
from llm_build.planner.graph.recipe_keys import RECIPE_KEYS
from llm_build.planner.graph.step_resources import lowering_bytes
from llm_build.planner.schemes.schemes import activations_of, scheme_of
from llm_build.targets import apple, cuda, webgpu

_GIB = 1 << 30


def lower_step(recipe: Recipe, linker: str) -> Step:
    target, scheme = recipe.target, scheme_of(recipe.quant)
    rounds_inputs = bool(activations_of(scheme))
    tools = {
        **({"linker": linker_of(target, linker)} if target.library == "so" else {}),
        **({"compiler": cuda.identity()} if target.kind == "cuda" else {}),
        **({"kernels": apple.identity()} if target.kind == "metal" else {}),
    }
    return Step(
        name="lower",
        function="llm_build.steps.lower:run",
        params={
            "family": recipe.family,
            "architecture": dict(recipe.architecture),
            "scheme": scheme,
            "target": target_of(target),
            "metadata": as_plain_data(recipe.metadata),
            **tools,
        },
        recipe_keys=RECIPE_KEYS,
        tools=("apache-tvm",),
        code=(
            architectures.FAMILIES[recipe.family],
            *_parts_of(recipe),
            *modules_of(target.kind, target.library, recipe.metadata.tensor_parallel_shards, rounds_inputs),
        ),
        resources=Resources(cpu=1, memory_bytes=lowering_bytes(recipe)),
        role="library",
        loads="tvm-compiler",
        programs=_programs_of(recipe, str(tools.get("kernels", ""))),
        locked_params=tuple(tools),
    )


def _parts_of(recipe: Recipe) -> tuple[str, ...]:
    """The modules that build this model's parts of the graph: no other model's parts make its library stale."""
    family = architectures.load(recipe.family)
    return family.graph_modules(family.from_architecture(recipe.architecture))


def _programs_of(recipe: Recipe, kernels: str) -> tuple[str, ...]:
    """What lowering runs beside TVM. ``kernels``: how those of a Metal library are kept."""
    target = recipe.target
    if target.kind == "metal":  # without Xcode, Metal source would come out
        return ("xcrun",) if kernels.startswith(apple.COMPILED) else ()
    linkers = {"opencl": "ndk"}
    linker = (linkers.get(target.kind, "linker"),) if target.library == "so" else ()
    return ("nvcc", *linker) if target.kind == "cuda" else linker


def link_steps(lower: Step) -> list[Step]:
    """TVM's runtime for browsers, and the model's objects linked with it."""
    identity = webgpu.identity()
    runtime = Step(
        name="runtime.wasm",
        function="llm_build.steps.runtime:run",
        params=identity,
        tools=("apache-tvm", "apache-tvm-ffi"),
        resources=Resources(cpu=1, memory_bytes=2 * _GIB),
        programs=("emcc",),
        locked_params=("emscripten", "headers"),
    )
    linking = Step(
        name="link",
        function="llm_build.steps.link:run",
        params={"emscripten": identity["emscripten"]},
        inputs={
            "objects": Input(lower.id, "library.tar"),
            "metadata": Input(lower.id, "metadata.json"),
            "runtime": Input(runtime.id, "*"),
        },
        programs=("emcc",),
        locked_params=("emscripten",),
    )
    return [runtime, linking]
