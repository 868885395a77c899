"""The --json document, and the rows that tables are made of."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_build.core.errors import BuildError
from llm_build.core.events import Finished
from llm_build.core.examine import StepStatus
from llm_build.core.plan import Goal
from llm_build.core.run import Outcome


def built(outcome: Outcome, outputs: Mapping[str, Path]) -> dict[str, Any]:
    """After a build: every recipe with its status, its folder and its steps."""
    return {
        "recipes": [
            {
                "name": goal.name,
                "status": outcome.goal(goal.name),
                "output": str(outputs[goal.name]),
                "steps": [finished_row(step) for step in outcome.finished(goal.name)],
            }
            for goal in outcome.plan.goals
        ]
    }


def finished_row(step: Finished) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": step.name,
        "role": step.role,
        "validation": step.validation,
        "status": step.status,
        "reason": step.reason,
        "seconds": round(step.seconds, 3),
        "bytes": step.nbytes,
        "key": step.key,
    }
    if step.facts:
        row["facts"] = dict(step.facts)
    if step.error is not None:
        row["error"] = {"message": step.error.message, "hint": step.error.hint}
    return row


def planned(goals: tuple[Goal, ...], verdicts: Mapping[str, StepStatus], outputs: Mapping[str, Path]) -> dict[str, Any]:
    """Before a build: what is fresh, what would run and why, what waits for that."""
    recipes, items = [], items_of(verdicts)
    for goal in goals:
        rows = [_status_row(v) for v in goal_verdicts(goal, verdicts, items)]
        fresh = all(row["status"] == "fresh" for row in rows)
        status = "fresh" if fresh else "stale"
        recipes.append({"name": goal.name, "status": status, "output": str(outputs[goal.name]), "steps": rows})
    return {"recipes": recipes}


def with_refused(
    whole: dict[str, Any], refused: Mapping[str, BuildError], outputs: Mapping[str, Path]
) -> dict[str, Any]:
    """The document with the cells of a sweep that were refused; recipes come in the order of ``outputs``."""
    rows = {row["name"]: row for row in whole["recipes"]}
    for name, error in refused.items():
        said = {"status": "unsupported", "reason": error.message, "hint": error.hint}
        rows[name] = {"name": name, **said, "output": str(outputs[name]), "steps": []}
    return {**whole, "recipes": [rows[name] for name in outputs]}


def items_of(verdicts: Mapping[str, StepStatus]) -> dict[str, list[StepStatus]]:
    """The verdicts of the items of each template, in order."""
    found: dict[str, list[StepStatus]] = {}
    for id_, verdict in verdicts.items():
        template, bracket, _ = id_.partition("[")
        if bracket:
            found.setdefault(template, []).append(verdict)
    return found


def goal_verdicts(
    goal: Goal, verdicts: Mapping[str, StepStatus], items: Mapping[str, list[StepStatus]]
) -> list[StepStatus]:
    """A goal's verdicts in display order; the items of a template stand in its place."""
    return [v for id_ in goal.steps for v in ([verdicts[id_]] if id_ in verdicts else items.get(id_, []))]


def _status_row(verdict: StepStatus) -> dict[str, Any]:
    record = verdict.record
    return {
        "name": verdict.step.name,
        "role": verdict.step.role,
        "validation": verdict.step.validation,
        "status": verdict.status,
        "reason": verdict.reason,
        "seconds": round(record.seconds, 3) if record else None,
        "bytes": record.nbytes if record else None,
        "key": verdict.key,
    }


def refused(error: BuildError) -> dict[str, Any]:
    """When there is no plan at all: the same document, with the error in it."""
    return {"recipes": [], "error": {"message": error.message, "hint": error.hint}}
