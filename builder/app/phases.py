"""Running a job whose recipes have a budget: first what picks the rules, then all that follows from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from builder.app.request import Job
from builder.core.errors import BuildError
from builder.core.events import Finished, Listener, Planned
from builder.core.plan import Goal, Plan
from builder.core.run import Outcome, run
from builder.core.task import Executor
from builder.planner.feasibility.preflight import refused
from builder.planner.graph import graph
from builder.planner.schemes import budget


def run_phases(job: Job, pool: Executor, listen: Listener, keep_going: bool) -> tuple[Outcome, Job]:
    """The outcome of the whole job, and the job with all rules that were picked.

    Recipes without a budget, or with rules that the store had already, are done in the first run.
    """
    listen(Planned(job.plan))
    first = run(job.plan, job.store, pool, listen, keep_going)
    if not any(recipe.undecided for recipe in job.recipes):
        return first, job
    whole = with_rules(job, first)
    goals = [
        goal
        for goal, before, after in zip(whole.plan.goals, job.recipes, whole.recipes, strict=True)
        if before.undecided and not after.undecided and (keep_going or not first.failed)
    ]
    steps = {id_: whole.plan.steps[id_] for goal in goals for id_ in goal.steps}
    listen(Planned(Plan(steps, tuple(goals))))
    second = run(Plan(steps, tuple(goals)), job.store, pool, listen, keep_going)
    return joined(whole.plan, first, second), whole


def without_goals(
    job: Job, errors: Mapping[str, BuildError], build: Callable[[Job], tuple[Outcome, Job]]
) -> tuple[Outcome, Job]:
    """The outcome of ``build`` for the recipes that no error concerns, joined with the refusal of the others.
    ``errors`` by step id."""
    bad = [goal for goal in job.plan.goals if not errors.keys().isdisjoint(goal.steps)]
    names = {goal.name for goal in bad}
    recipes = tuple(recipe for recipe in job.recipes if recipe.name not in names)
    outcome, good = build(replace(job, recipes=recipes, plan=graph.build_plan(recipes)))
    decided = {recipe.name: recipe for recipe in good.recipes}
    whole = replace(job, recipes=tuple(decided.get(recipe.name, recipe) for recipe in job.recipes))
    whole = replace(whole, plan=graph.build_plan(whole.recipes))
    lost = refused(Plan({id_: job.plan.steps[id_] for goal in bad for id_ in goal.steps}, tuple(bad)), errors)
    steps = {id_: done for id_, done in lost.steps.items() if id_ not in outcome.steps}
    return joined(whole.plan, outcome, lost._replace(steps=steps)), whole


def with_rules(job: Job, first: Outcome) -> Job:
    """The job with the rules that ``first`` picked."""
    recipes = [
        budget.decided(recipe, first.records.get(goal.steps[-1]), job.store) if recipe.undecided else recipe
        for goal, recipe in zip(job.plan.goals, job.recipes, strict=True)
    ]
    return replace(job, recipes=tuple(recipes), plan=graph.build_plan(recipes))


def joined(plan: Plan, first: Outcome, second: Outcome) -> Outcome:
    """One outcome of two runs over parts of ``plan``: what ran in the first is fresh in the second, and did run."""
    known = {**first.plan.steps, **second.plan.steps}
    ran = {id_: done for id_, done in first.steps.items() if done.status != "hit"}
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
