"""The cells of a sweep: what is known of each, as a matrix, and whom a failure concerns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_build.app.measurements import last_measurement
from llm_build.app.request import BuildRequest
from llm_build.core.digest import digest_of_names
from llm_build.core.events import Finished
from llm_build.core.examine import StepStatus
from llm_build.core.json_text import without_nonfinite
from llm_build.core.plan import Plan, goals_of_steps
from llm_build.core.record import Record
from llm_build.core.run import Outcome
from llm_build.core.status import LiveStatus, Status
from llm_build.core.step import Step
from llm_build.core.units import count_of
from llm_build.planner.graph.bench import bench_goal
from llm_build.report.document import goal_verdicts, items_of
from llm_build.report.matrix import Cell, Matrix
from llm_build.report.ranking import ranked


def waiting(request: BuildRequest) -> Matrix:
    """Before a run that is going to be watched."""
    return _matrix(
        request, {goal.name: Cell(goal.name, request.axes.at[goal.name], "waiting") for goal in request.plan.goals}
    )


def before_measuring(request: BuildRequest, plan: Plan) -> Matrix | None:
    """The same before the cells of ``plan`` are measured."""
    goals = {goal.name for goal in plan.goals}
    cells = [cell._replace(name=bench_goal(cell.name)) for cell in waiting(request).cells]
    planned = tuple(cell for cell in cells if cell.name in goals)
    return Matrix(request.axes.names, planned) if len(planned) > 1 else None


def after_build(request: BuildRequest, outcome: Outcome) -> Matrix:
    """After a run: what became of each cell."""
    known = dict[str, Cell]()
    for goal in outcome.plan.goals:
        done = [outcome.steps[id_] for id_ in goal.steps]
        bad = next((step.name for step in done if step.status == "failed"), "")
        records = [(outcome.plan.steps[id_], outcome.records[id_]) for id_ in goal.steps if id_ in outcome.records]
        statuses = {step.status for step in done}
        status: Status = "skipped" if statuses & {"failed", "skipped"} == {"skipped"} else outcome.goal(goal.name)
        known[goal.name] = _cell(request, goal.name, status, bad, records, goal.artifact)
    return _matrix(request, known)


def before_build(request: BuildRequest, verdicts: Mapping[str, StepStatus]) -> Matrix:
    """Before a run: how much of each cell is stale."""
    known, items = dict[str, Cell](), items_of(verdicts)
    for goal in request.plan.goals:
        own = goal_verdicts(goal, verdicts, items)
        todo = sum(verdict.status != "fresh" for verdict in own)
        records = [(verdict.step, verdict.record) for verdict in own if verdict.record]
        note = f"{todo}/{count_of(len(own), 'step')}" if todo else ""
        known[goal.name] = _cell(request, goal.name, "stale" if todo else "fresh", note, records, goal.artifact)
    return _matrix(request, known)


def _matrix(request: BuildRequest, known: Mapping[str, Cell]) -> Matrix:
    cells = [known.get(name) or Cell(name, request.axes.at[name], "unsupported") for name in request.names]
    return Matrix(request.axes.names, tuple(cells), excluded=len(request.excluded))


def _figure(value: Any) -> float | None:
    """A fact as a number: what is not finite was recorded as a word."""
    return None if value is None else float(value)


def _cell(
    request: BuildRequest,
    name: str,
    status: LiveStatus,
    note: str,
    records: Sequence[tuple[Step, Record]],
    artifact: str,
) -> Cell:
    """``records``: the results that the cell has; ``artifact``: the id of its step."""
    facts = next((record.facts for step, record in records if step.validation), {})
    made = next((record for step, record in records if step.id == artifact), None)
    model = next((record for step, record in records if step.role == "model"), None)
    perplexity, original, kl, top1 = (
        _figure(facts.get(name)) for name in ("perplexity", "perplexity_original", "kl", "top1")
    )
    stored = (record.facts.get("bits_per_parameter") for _, record in records)
    bits = next((value for value in stored if value is not None), None)
    return Cell(
        name, request.axes.at[name], status, note,
        nbytes=sum(output.nbytes for output in made.outputs.values()) if made else 0,
        perplexity=perplexity, original=original, tokens_per_s=_speed(request, name, model),
        kl=kl, top1=top1, bits=_figure(bits),
    )  # fmt: skip


def _speed(request: BuildRequest, name: str, model: Record | None) -> float | None:
    """Tokens/s of the last measurement of this very artifact, decoding where the context is shortest."""
    if model is None:
        return None
    files = {file: output.digest for file, output in model.outputs.items()}
    bench = last_measurement(request.store, name, digest_of_names(files))
    return float(bench["decode"][0]["tokens_per_s"]["median"]) if bench and bench["decode"] else None


def cells_that_need(request: BuildRequest, outcome: Outcome, steps: Sequence[Finished]) -> list[str]:
    """The cells that need one of some steps, or are measured by one."""
    goals = goals_of_steps(outcome.plan.goals)
    needing = {name for step in steps for name in goals.get(step.id, ())}
    return [name for name in request.names if name in needing or bench_goal(name) in needing]


def matrix_document(matrix: Matrix) -> dict[str, Any]:
    """The key "matrix" of --json: the axes with their values, every cell with what is known of it, and the names of the
    measured ones, the least KL first."""
    axes = {axis: list(dict.fromkeys(cell.at[i] for cell in matrix.cells)) for i, axis in enumerate(matrix.axes)}
    cells = []
    for cell in matrix.cells:
        row = {"name": cell.name, **dict(zip(matrix.axes, cell.at, strict=True)), "status": cell.status}
        figures = {
            "bytes": cell.nbytes or None, "bits_per_weight": cell.bits, "kl": cell.kl, "top1": cell.top1,
            "perplexity": cell.perplexity, "tokens_per_s": cell.tokens_per_s,
        }  # fmt: skip
        cells.append({**row, **without_nonfinite(figures)})
    return {"axes": axes, "cells": cells, "ranking": [cell.name for cell in ranked(matrix.cells)]}
