"""A plan: every step once, and the goals that want them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from llm_build.core.step import Step


class Goal(NamedTuple):
    """One recipe: its name, its steps in the order they are shown, and the step whose outputs are the artifact.

    ``partial``: more steps will follow when these are done, so what is known of the others is kept."""

    name: str
    steps: tuple[str, ...]
    artifact: str = ""
    partial: bool = False


class Plan(NamedTuple):
    steps: Mapping[str, Step]
    goals: tuple[Goal, ...]


def check_plan(plan: Plan) -> None:
    """Assert what the rest relies on: known ids, no cycle, one step per name in a goal, templates that can expand."""
    for id_, step in plan.steps.items():
        assert id_ == step.id, f"step {step.id} is filed under {id_}"
        for port, source in step.inputs.items():
            assert source.step in plan.steps, f"{id_}: port {port} reads unknown step {source.step}"
        assert not step.expand or step.expand in step.inputs, f"{id_}: no port {step.expand} to expand"
        assert not step.expand or not plan.steps[step.inputs[step.expand].step].expand, f"{id_}: expands a template"
    for goal in plan.goals:
        names = [plan.steps[id_].name for id_ in goal.steps]
        assert len(set(names)) == len(names), f"goal {goal.name} has two steps of one name: {sorted(names)}"
        assert not goal.artifact or goal.artifact in goal.steps, f"goal {goal.name}: artifact {goal.artifact} unknown"
    assert len(order(plan)) == len(plan.steps), "the plan has a cycle"


def order(plan: Plan) -> list[str]:
    """Step ids, producers first; steps on a cycle are left out."""
    missing = {id_: len(producers_of(step)) for id_, step in plan.steps.items()}
    readers: dict[str, list[str]] = {}
    for id_, step in plan.steps.items():
        for producer in producers_of(step):
            readers.setdefault(producer, []).append(id_)
    ready = [id_ for id_, count in missing.items() if not count]
    for id_ in ready:  # grows while it is walked
        for reader in readers.get(id_, ()):
            missing[reader] -= 1
            if not missing[reader]:
                ready.append(reader)
    return ready


def producers_of(step: Step) -> set[str]:
    return {source.step for source in step.inputs.values()}


def needed_by(step: Step, plan: Plan) -> dict[str, Step]:
    """All that a step is made from, directly or not."""
    ids = [source.step for source in step.inputs.values()]
    for id_ in ids:  # grows while it is walked
        ids += [source.step for source in plan.steps[id_].inputs.values() if source.step not in ids]
    return {id_: plan.steps[id_] for id_ in ids}


def goals_of_steps(goals: Iterable[Goal]) -> dict[str, list[str]]:
    """{step id: names of the goals that want it}."""
    names: dict[str, list[str]] = {}
    for goal in goals:
        for id_ in goal.steps:
            names.setdefault(id_, []).append(goal.name)
    return names
