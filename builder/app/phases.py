"""Running a request whose recipes have a budget: first what picks the rules, then all that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from llm_build.app.request import BuildRequest
from llm_build.core.errors import BuildError
from llm_build.core.events import Finished, Listener, Planned
from llm_build.core.plan import Goal, Plan
from llm_build.core.run import Outcome, run
from llm_build.core.task import Executor
from llm_build.planner.feasibility.preflight import refused_outcome
from llm_build.planner.graph import graph

Built = tuple[Outcome, BuildRequest]  # what became of the steps; the request with the rules that were picked


def run_phases(request: BuildRequest, pool: Executor, listen: Listener, keep_going: bool) -> Built:
    """The outcome of the whole request, and the request with all rules that were picked.

    Recipes without a budget, or with rules that the store had already, are done in the first run.
    """
    listen(Planned(request.plan))
    first = run(request.plan, request.store, pool, listen, keep_going)
    if not any(recipe.undecided for recipe in request.recipes):
        return first, request
    merged = _with_picked_rules(request, first)
    goals = [
        goal
        for goal, before, after in zip(merged.plan.goals, request.recipes, merged.recipes, strict=True)
        if before.undecided and not after.undecided and (keep_going or not first.failed)
    ]
    steps = {id_: merged.plan.steps[id_] for goal in goals for id_ in goal.steps}
    listen(Planned(Plan(steps, tuple(goals))))
    second = run(Plan(steps, tuple(goals)), request.store, pool, listen, keep_going)
    return _join_outcomes(merged.plan, first, second), merged


def without_goals(
    request: BuildRequest, errors: Mapping[str, BuildError], build: Callable[[BuildRequest], Built]
) -> Built:
    """The outcome of ``build`` for the recipes that no error concerns, joined with the refusal of the others.
    ``errors`` by step id."""
    bad = [goal for goal in request.plan.goals if not errors.keys().isdisjoint(goal.steps)]
    names = {goal.name for goal in bad}
    recipes = tuple(recipe for recipe in request.recipes if recipe.name not in names)
    outcome, good = build(replace(request, recipes=recipes, plan=graph.build_plan(recipes)))
    decided = {recipe.name: recipe for recipe in good.recipes}
    merged = replace(request, recipes=tuple(decided.get(recipe.name, recipe) for recipe in request.recipes))
    merged = replace(merged, plan=graph.build_plan(merged.recipes))
    refusals = refused_outcome(
        Plan({id_: request.plan.steps[id_] for goal in bad for id_ in goal.steps}, tuple(bad)), errors
    )
    steps = {id_: done for id_, done in refusals.steps.items() if id_ not in outcome.steps}
    return _join_outcomes(merged.plan, outcome, refusals._replace(steps=steps)), merged


def _with_picked_rules(request: BuildRequest, first: Outcome) -> BuildRequest:
    """The request with the rules that ``first`` picked."""
    from llm_build.planner.schemes import budget  # most builds have none

    recipes = [
        budget.with_picked_rules(recipe, first.records.get(goal.steps[-1]), request.store)
        if recipe.undecided
        else recipe
        for goal, recipe in zip(request.plan.goals, request.recipes, strict=True)
    ]
    return replace(request, recipes=tuple(recipes), plan=graph.build_plan(recipes))


def _join_outcomes(plan: Plan, first: Outcome, second: Outcome) -> Outcome:
    """One outcome of two runs over parts of ``plan``: what ran in the first is fresh in the second, and did run."""
    known = {**first.plan.steps, **second.plan.steps}
    ran = {id_: done for id_, done in first.steps.items() if done.status != "fresh"}
    finished: dict[str, Finished] = {**first.steps, **second.steps, **ran}
    grown = {goal.name: goal for goal in [*first.plan.goals, *second.plan.goals] if not goal.partial}
    goals: list[Goal] = [grown.get(goal.name, goal) for goal in plan.goals]
    steps = {id_: known.get(id_) or plan.steps[id_] for goal in goals for id_ in goal.steps}
    for id_ in steps.keys() - finished.keys():
        finished[id_] = Finished(
            id_,
            steps[id_].name,
            "skipped",
            "not started: another step failed",
            validation=steps[id_].validation,
            role=steps[id_].role,
        )
    return Outcome(Plan(steps, tuple(goals)), finished, {**first.records, **second.records})
