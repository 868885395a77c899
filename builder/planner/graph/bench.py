"""The steps that measure artifacts on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_build.config.schema import Recipe
from llm_build.core.plan import Goal, Plan, needed_by
from llm_build.core.step import Input, Resources, Step
from llm_build.planner.feasibility.platforms import gpus_of
from llm_build.planner.graph.step_resources import running_bytes

NAME = "bench"
ALL_CORES = 1 << 10  # cut to what there is
_LENGTHS = {"prompt": 256, "contexts": [8, 512]}  # tokens; decoding is measured near the end of the context too


def bench_plan(recipes: Sequence[tuple[Recipe, Mapping[str, Any]]], plan: Plan) -> Plan:
    """What measures the artifacts of some recipes of ``plan``, each on the machine beside it, which is this one.

    A build never plans it: an artifact is whole without it, and build.json knows nothing of it. Each has a goal of its
    own, bench_goal(name), which has no other step."""
    goals = {goal.name: goal for goal in plan.goals}
    steps: dict[str, Step] = {}
    measured = []
    for recipe, machine in recipes:
        package = next(id_ for id_ in goals[recipe.name].steps if plan.steps[id_].role == "model")
        bench = Step(
            name=NAME,
            function="llm_build.steps.bench:run",
            params={"machine": machine, **_LENGTHS},
            inputs={"package": Input(package, "*")},
            tools=("apache-tvm", "numpy"),
            validation=True,
            resources=Resources(cpu=ALL_CORES, memory_bytes=running_bytes(recipe), gpu=gpus_of(recipe)),
        )
        steps |= {bench.id: bench, **needed_by(bench, plan)}
        measured.append(Goal(bench_goal(recipe.name), (bench.id,)))
    return Plan(steps, tuple(measured))


def bench_goal(name: str) -> str:
    """Under which the store keeps the last measurement of an artifact."""
    return f"{name} bench"
