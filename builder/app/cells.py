"""The cells of a sweep: what is known of each, as a matrix, and whom a failure concerns."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TextIO

from builder.app.request import Job
from builder.cli.build import relative
from builder.config.axes import Axes
from builder.core.events import Finished
from builder.core.examine import Verdict
from builder.core.plan import Plan, goals_of_steps
from builder.core.record import Record
from builder.core.run import Outcome
from builder.core.step import Step
from builder.planner.graph.bench import bench_goal
from builder.report.document import goal_verdicts, items_of
from builder.report.matrix import Cell, Matrix, coloured, counted, legend, lines, lines_short, plain
from builder.report.words import folded

PLAIN_WIDTH = 120  # of a matrix in a log
SCREENS = 3  # of a terminal that a matrix may fill
NAMED = 3  # cells that are told by name


def waiting(job: Job) -> Matrix:
    """Before a run that is going to be watched."""
    return whole(job, {goal.name: Cell(goal.name, job.axes.at[goal.name], "waiting") for goal in job.plan.goals})


def measured(job: Job, plan: Plan) -> Matrix | None:
    """The same before the cells of ``plan`` are measured."""
    goals = {goal.name for goal in plan.goals}
    found = [cell._replace(name=bench_goal(cell.name)) for cell in waiting(job).cells]
    planned = tuple(cell for cell in found if cell.name in goals)
    return Matrix(job.axes.names, planned) if len(planned) > 1 else None


def built(job: Job, outcome: Outcome) -> Matrix:
    """After a run: what became of each cell."""
    known = dict[str, Cell]()
    for goal in outcome.plan.goals:
        done = [outcome.steps[id_] for id_ in goal.steps]
        bad = next((step.name for step in done if step.status == "failed"), "")
        records = [(outcome.plan.steps[id_], outcome.records[id_]) for id_ in goal.steps if id_ in outcome.records]
        statuses = {step.status for step in done}
        status = next((s for s in ("failed", "skipped") if s in statuses), "built" if "ran" in statuses else "fresh")
        known[goal.name] = cell(job, goal.name, status, bad, records, goal.artifact)
    return whole(job, known)


def planned(job: Job, verdicts: Mapping[str, Verdict]) -> Matrix:
    """Before a run: how much of each cell is stale."""
    known, items = dict[str, Cell](), items_of(verdicts)
    for goal in job.plan.goals:
        found = goal_verdicts(goal, verdicts, items)
        todo = sum(verdict.status != "hit" for verdict in found)
        records = [(verdict.step, verdict.record) for verdict in found if verdict.record]
        note = f"{todo}/{len(found)} steps" if todo else ""
        known[goal.name] = cell(job, goal.name, "stale" if todo else "fresh", note, records, goal.artifact)
    return whole(job, known)


def whole(job: Job, known: Mapping[str, Cell]) -> Matrix:
    cells = [known.get(name) or Cell(name, job.axes.at[name], "unsupported") for name in job.names]
    return Matrix(job.axes.names, tuple(cells), excluded=len(job.excluded))


def cell(job: Job, name: str, status: str, note: str, records: Sequence[tuple[Step, Record]], artifact: str) -> Cell:
    """``records``: the results that the cell has; ``artifact``: the id of its step."""
    facts = next((record.facts for step, record in records if step.validation), {})
    made = next((record for step, record in records if step.id == artifact), None)
    model = next((record for step, record in records if step.role == "model"), None)
    perplexity: Any = facts.get("perplexity")
    original: Any = facts.get("perplexity_original")
    return Cell(
        name, job.axes.at[name], status, note,
        nbytes=sum(output.nbytes for output in made.outputs.values()) if made else 0,
        perplexity=perplexity, original=original, tokens_per_s=speed(job, name, model),
    )  # fmt: skip


def speed(job: Job, name: str, model: Record | None) -> float | None:
    """Tokens/s of the last measurement of this very artifact, decoding where the context is shortest."""
    place = next(iter(job.store.places(bench_goal(name)).values()), None) if model else None
    record = job.store.load(place.key).record if place else None
    if not record or not model:
        return None
    if {name: output.digest for name, output in model.outputs.items()} not in record.groups.values():
        return None
    found = json.loads(job.store.read(record.outputs["bench.json"].digest))["decode"]
    return float(found[0]["tokens_per_s"]["median"]) if found else None


def print_sweep(matrix: Matrix, job: Job, outcome: Outcome, stream: TextIO) -> None:
    """The matrix, why cells could not be built, and what it took."""
    print_matrix(matrix, stream)
    print_refused(job, stream)
    ran = [step for step in outcome.steps.values() if step.status == "ran"]
    steps = f"{len(ran)} of {len(outcome.steps)} steps ran" if ran else f"all {len(outcome.steps)} steps fresh"
    if any(cell.status in ("built", "fresh") for cell in matrix.cells):
        print(f"{steps}; a folder for each cell in {relative(job.dist)}", file=stream)
    skipped = sum(cell.status == "skipped" for cell in matrix.cells)
    if skipped:
        print(f"{skipped} cells skipped because others failed: -k builds what does not depend on those", file=stream)


def wanting(job: Job, outcome: Outcome, steps: Sequence[Finished]) -> list[str]:
    """The cells that need one of some steps, or are measured by one."""
    goals = goals_of_steps(outcome.plan.goals)
    found = {name for step in steps for name in goals.get(step.id, ())}
    return [name for name in job.names if name in found or bench_goal(name) in found]


def print_matrix(matrix: Matrix, stream: TextIO) -> None:
    """In colours on a terminal, once and plain elsewhere."""
    terminal, screen = stream.isatty(), shutil.get_terminal_size((80, 24))
    drawn = lines(matrix, screen.columns if terminal else PLAIN_WIDTH)
    if terminal and len(drawn) > SCREENS * screen.lines:
        drawn = lines_short(matrix, screen.lines - 3)
    for line in [*drawn, counted(matrix)]:
        print(coloured(line) if terminal else plain(line), file=stream)
    for text in legend(matrix):
        print(folded(text, stream), file=stream)


def print_refused(job: Job, stream: TextIO) -> None:
    """Why cells cannot be built, each reason once, with the cells that it concerns."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, error in job.refused.items():
        reasons.setdefault((error.message, error.hint), []).append(name)
    for (message, hint), names in reasons.items():
        print(folded(f"unsupported: {message}", stream), file=stream)
        print(f"  cells: {told(job.axes, names)}", file=stream)
        if hint:
            print(f"  next: {hint}", file=stream)


def told(axes: Axes, names: Collection[str]) -> str:
    """Some cells in few words: as overrides where they are all combinations of some values, else by name."""
    if len(names) == len(axes.at):
        return f"all {len(names)}"
    if len(names) <= 1:
        return ", ".join(names)
    columns = list(zip(*(axes.at[name] for name in names), strict=True))
    values = [list(dict.fromkeys(column)) for column in columns]
    everything = [set(column) for column in zip(*axes.at.values(), strict=True)]
    places = {axes.at[name] for name in names}
    if {at for at in axes.at.values() if all(v in own for v, own in zip(at, values, strict=True))} == places:
        own = [
            f"{axis}={','.join(v)}"
            for axis, v, all_ in zip(axes.names, values, everything, strict=True)
            if {*v} != all_
        ]
        return f"{' '.join(own)} ({len(names)} of {len(axes.at)})"
    shown = list(names)[:NAMED]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def document(matrix: Matrix) -> dict[str, Any]:
    """The key "matrix" of --json: the axes with their values, and every cell with what is known of it."""
    axes = {axis: list(dict.fromkeys(cell.at[i] for cell in matrix.cells)) for i, axis in enumerate(matrix.axes)}
    cells = []
    for cell in matrix.cells:
        row = {"name": cell.name, **dict(zip(matrix.axes, cell.at, strict=True)), "status": cell.status}
        figures = {"bytes": cell.nbytes or None, "perplexity": cell.perplexity, "tokens_per_s": cell.tokens_per_s}
        cells.append({**row, **figures})
    return {"axes": axes, "cells": cells}
