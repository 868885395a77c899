"""`build plan`: what would run and why. Nothing runs."""

from __future__ import annotations

import json
import sys

from builder.arguments import Arguments
from builder.commands.jobs import Job, folders_of, job_of, merge
from builder.core.examine import examine
from builder.report import document
from builder.report.table import print_steps


def show(arguments: Arguments) -> int:
    if arguments.options.multirun:
        from builder.commands.hydra import sweep

        return sweep(arguments, lambda jobs: print_plan(arguments, merge(jobs, folders_of(arguments))))
    return print_plan(arguments, job_of(arguments))


def print_plan(arguments: Arguments, job: Job) -> int:
    whole = document.planned(job.plan.goals, examine(job.plan, job.store), job.outputs)
    if arguments.options.json:
        json.dump(whole, sys.stdout, indent=1)
        print()
        return 0
    for recipe in whole["recipes"]:
        todo = [step for step in recipe["steps"] if step["status"] != "hit"]
        said = f"{len(todo)} of {len(recipe['steps'])} steps to run" if todo else "nothing to do"
        print(f"{recipe['name']}: {said}")
        print_steps(recipe, sys.stdout)
    return 0
