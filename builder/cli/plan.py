"""`build plan`: what would run and why. Nothing runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from builder.app import cells
from builder.app.request import UNDECIDED, Job, folders_of, is_sweep, job_of, merge, pinned, undecided
from builder.app.request import verdicts as verdicts_of
from builder.cli.arguments import Arguments
from builder.cli.build import hold_to_lock, print_unsupported, refused_code
from builder.core.events import Planned, Warned
from builder.core.examine import Verdict
from builder.core.units import format_bytes
from builder.planner.feasibility import sizing
from builder.planner.feasibility.device_memory import Memory
from builder.report import document
from builder.report.board import Board
from builder.report.table import print_steps
from builder.report.words import base, folded


def show(arguments: Arguments) -> int:
    if is_sweep(arguments):
        from builder.app.sweep import sweep

        return sweep(
            arguments, lambda jobs: print_plan(arguments, merge(pinned(arguments, jobs), folders_of(arguments)))
        )
    return print_plan(arguments, job_of(arguments))


def print_plan(arguments: Arguments, job: Job) -> int:
    hold_to_lock(arguments, job)
    verdicts = verdicts_of(job.plan, job.store)
    job.store.drain(
        lambda event: print(f"warning: {event.message}", file=sys.stderr) if isinstance(event, Warned) else None
    )
    whole = document.planned(job.plan.goals, verdicts, job.outputs)
    whole = document.with_refused(whole, job.refused, job.outputs)
    memory = {recipe.name: sizing.memory_of(recipe) for recipe in job.recipes if not recipe.undecided}
    for recipe in whole["recipes"]:
        if undecided(job, recipe["name"]):
            recipe["undecided"] = UNDECIDED
        if recipe["name"] in memory:
            found = memory[recipe["name"]]
            recipe["memory"] = {**asdict(found), "total": found.total}
    if arguments.options.json:
        if len(job.names) > 1:
            whole["matrix"] = cells.document(cells.planned(job, verdicts))
        json.dump(whole, sys.stdout, indent=1)
        print()
    elif len(job.names) > 1 and not arguments.options.steps:
        print_sweep(job, verdicts, memory)
    else:
        for recipe in whole["recipes"]:
            print_recipe(recipe, job, memory)
    return refused_code(arguments, job)


def print_sweep(job: Job, verdicts: Mapping[str, Verdict], memory: Mapping[str, Memory]) -> None:
    """The matrix of what is stale, why cells cannot be built, and the steps that would run, alike ones together."""
    matrix = cells.planned(job, verdicts)
    cells.print_matrix(matrix, sys.stdout)
    cells.print_refused(job, sys.stdout)
    todo = [verdict for verdict in verdicts.values() if verdict.status != "hit"]
    print(f"{len(todo)} of {len(verdicts)} steps to run" + (":" if todo else ""))
    board = Board(matrix)
    board(Planned(job.plan))
    alike: dict[tuple[str, str], list[Verdict]] = {}
    for verdict in todo:
        alike.setdefault((base(verdict.step.name), verdict.reason), []).append(verdict)
    rows = []
    for (name, reason), found in alike.items():
        several = f"{len(found)} × {name}"
        rows.append((several if len(found) > 1 else board.label(found[0].step.id, found[0].step.name), reason))
    width = max((len(row[0]) for row in rows), default=0)
    for label, reason in rows:
        print(f"  {label:<{width}}  {reason}")
    if any(recipe.undecided for recipe in job.recipes):
        print(f"  {UNDECIDED}")
    if memory:
        least, most = (choose(memory, key=lambda name: memory[name].total) for choose in (min, max))
        sizes = [f"{format_bytes(memory[name].total)} ({name})" for name in (least, most)]
        said = f"memory of a run: {' to '.join(sizes)}"
        print(folded(said, sys.stdout))
    if todo:
        print("build plan -m ... --steps shows every step of every cell")


def print_recipe(recipe: dict[str, Any], job: Job, memory: Mapping[str, Memory]) -> None:
    """One recipe of the document."""
    if recipe["status"] == "unsupported":
        print_unsupported(recipe, sys.stdout)
        return
    todo = [step for step in recipe["steps"] if step["status"] != "hit"]
    said = f"{len(todo)} of {len(recipe['steps'])} steps to run" if todo else "nothing to do"
    print(f"{recipe['name']}: {said}")
    print_steps(recipe, sys.stdout)
    if undecided(job, recipe["name"]):
        print(f"  {UNDECIDED}")
        return
    found = next(each for each in job.recipes if each.name == recipe["name"])
    said = f"memory  {sizing.in_words(memory[found.name], found.metadata, found.target)}"
    print(folded(said, sys.stdout))
