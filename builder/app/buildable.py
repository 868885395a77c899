"""Which recipes of a request can be built, or run, on this machine; what cannot is refused before any work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from llm_build.app.places import examine_stores
from llm_build.app.request import BuildRequest
from llm_build.core.errors import BuildError, StepError, Unsupported
from llm_build.core.plan import Goal, Plan
from llm_build.planner.feasibility import platforms
from llm_build.planner.graph import graph


def drop_unbuildable(request: BuildRequest) -> BuildRequest:
    """The request without the cells of a sweep that need a tool that is not on this machine; raises a plain build's."""
    if all(recipe.target.kind == "cpu" and recipe.package.kind == "mlc" for recipe in request.recipes):
        return request  # they need none, and a build with nothing to do has no time to load the table
    from llm_build.targets import tools

    refused = dict[str, Unsupported]()
    for goal, recipe in zip(request.plan.goals, request.recipes, strict=True):
        target = recipe.target
        several = ("cuda.several",) if len(target.arch) > 1 else ()
        kinds = (target.kind, f"{target.kind}.{target.library}", recipe.package.kind, *several)
        for tool in tools.missing_tools(*kinds):
            if _is_made(request, goal, tool.program):
                continue
            group = "package" if recipe.package.kind in tool.needed else "target"
            refused.setdefault(recipe.name, tools.missing_tool_error(tool, f"{group}={recipe.choices[group]}"))
    if refused and not request.is_sweep:
        raise refused[request.names[0]]
    if request.is_sweep:  # a plain build without a linker fails in its step lower, before that runs
        refused |= _unlinkable(request)
    return without(request, refused) if refused else request


def _is_made(request: BuildRequest, goal: Goal, program: str) -> bool:
    """Whether the first steps of a goal that run this program have their results, made on another machine perhaps."""
    chain = (request.plan.steps[id_] for id_ in goal.steps)
    steps = {step.id: step for step in chain if program in step.programs and not step.inputs}
    verdicts = examine_stores(Plan(steps, ()), request.store)
    return bool(steps) and all(verdict.status == "fresh" for verdict in verdicts.values())


def _unlinkable(request: BuildRequest) -> dict[str, Unsupported]:
    """The recipes whose library no linker of this machine makes, and that was not made elsewhere either."""
    from llm_build.targets import link

    refused = {}
    for goal, recipe in zip(request.plan.goals, request.recipes, strict=True):
        if recipe.target.library == "so" and _is_linked(recipe.target.triple):
            try:
                link.require_linker(recipe.target.triple)
            except StepError as error:
                if _is_made(request, goal, "linker"):
                    continue
                refused[recipe.name] = Unsupported(f"target={recipe.choices['target']}: {error.message}", error.hint)
    return refused


def _is_linked(triple: str) -> bool:
    from llm_build.targets import link

    return triple.endswith("linux-gnu") or link.is_native(triple)


def runnable(request: BuildRequest, what: str) -> BuildRequest:
    """The request without the cells of a sweep that this machine cannot run; raises a plain one's. ``what``: "bench
    measures"."""
    refused: dict[str, BuildError] = {}
    for recipe in request.recipes:
        if not platforms.runs_here(recipe.target, recipe.metadata.tensor_parallel_shards):
            refused[recipe.name] = Unsupported(
                f"{what} on this machine, which cannot run a library for {platforms.platform_of(recipe.target)}",
                "`build`, with the same overrides, builds it here, for one that can",
            )
    if refused and not request.is_sweep:
        raise refused[request.names[0]]
    return without(request, refused) if refused else request


def with_decided_budgets(request: BuildRequest) -> BuildRequest:
    """The request with the rules of every budget that the store has the result of; as it is, where there is none."""
    if not any(recipe.undecided for recipe in request.recipes):
        return request
    from llm_build.planner.schemes import budget

    recipes = budget.with_stored_rules(request.recipes, request.plan, request.store)
    return replace(request, recipes=recipes, plan=graph.build_plan(recipes))


def is_undecided(request: BuildRequest, name: str) -> bool:
    """Whether the rules of a recipe are still to be picked, so that ``request.plan`` ends with that."""
    return any(recipe.undecided for recipe in request.recipes if recipe.name == name)


def without(request: BuildRequest, refused: Mapping[str, BuildError]) -> BuildRequest:
    """The request with some of its recipes refused."""
    recipes = tuple(recipe for recipe in request.recipes if recipe.name not in refused)
    plan = graph.build_plan(recipes)
    return replace(request, recipes=recipes, plan=plan, refused={**request.refused, **refused})
