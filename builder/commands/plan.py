"""`build plan`: what would run and why. Nothing runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from builder import sizing
from builder.arguments import Arguments
from builder.commands.build import print_unsupported, refused_code
from builder.commands.jobs import UNDECIDED, Job, folders_of, job_of, merge, undecided
from builder.core.examine import examine
from builder.memory import Memory
from builder.report import document
from builder.report.table import print_steps


def show(arguments: Arguments) -> int:
    if arguments.options.multirun:
        from builder.commands.hydra import sweep

        return sweep(arguments, lambda jobs: print_plan(arguments, merge(jobs, folders_of(arguments))))
    return print_plan(arguments, job_of(arguments))


def print_plan(arguments: Arguments, job: Job) -> int:
    whole = document.planned(job.plan.goals, examine(job.plan, job.store), job.outputs)
    whole = document.with_refused(whole, job.refused, job.outputs)
    memory = {recipe.name: sizing.memory_of(recipe) for recipe in job.recipes if not recipe.undecided}
    for recipe in whole["recipes"]:
        if undecided(job, recipe["name"]):
            recipe["undecided"] = UNDECIDED
        if recipe["name"] in memory:
            found = memory[recipe["name"]]
            recipe["memory"] = {**asdict(found), "total": found.total}
    if arguments.options.json:
        json.dump(whole, sys.stdout, indent=1)
        print()
        return refused_code(arguments, job)
    for recipe in whole["recipes"]:
        print_recipe(recipe, job, memory)
    return refused_code(arguments, job)


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
    print(f"memory  {sizing.in_words(memory[found.name], found.metadata, found.target)}")
