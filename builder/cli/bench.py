"""`build bench`: bring recipes up to date, then measure each artifact on this machine, or show what was measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from builder.app import cells
from builder.app.request import Job, folders_of, is_sweep, job_of, merge, runnable
from builder.cli.arguments import Arguments
from builder.cli.build import Result, bring_up_to_date, events_to, listener, print_failures, print_recipe, refused_code
from builder.config.schema import Recipe
from builder.core.events import Planned
from builder.core.examine import examine
from builder.core.plan import Plan
from builder.core.run import Outcome
from builder.planner.graph import bench as graph
from builder.report import document


def show(arguments: Arguments) -> int:
    if is_sweep(arguments):
        from builder.app.sweep import sweep

        return sweep(arguments, lambda jobs: bench(arguments, merge(jobs, folders_of(arguments))))
    return bench(arguments, job_of(arguments))


def bench(arguments: Arguments, job: Job) -> int:
    """The exit code; the measurements are printed as a table or as a document."""
    from builder.core.run import run
    from builder.executors import local

    result = bring_up_to_date(arguments, runnable(job, "bench measures"), events_to(arguments))
    built = [recipe for recipe in result.job.recipes if result.outcome.goal(recipe.name) != "failed"]
    plan = plan_of(built, result.job.plan)
    if arguments.options.again:
        for verdict in examine(plan, job.store).values():
            if verdict.step.name == "bench" and verdict.status == "hit":
                job.store.forget(verdict.key)
    with (
        listener(events_to(arguments), arguments.options.quiet, cells.measured(result.job, plan)) as listen,
        local.LocalExecutor(job.store, local.capacity()) as pool,
    ):
        listen(Planned(plan))
        measured = run(plan, job.store, pool, listen, keep_going=True)
    return finish(arguments, result, measured)


def plan_of(recipes: Sequence[Recipe], plan: Plan) -> Plan:
    """The plan of the measurements of some recipes of a plan, on this machine."""
    from builder.targets import machine

    by_kind = {gpu: machine.describe(gpu) for gpu in {recipe.target.kind != "cpu" for recipe in recipes}}
    return graph.bench_plan([(recipe, by_kind[recipe.target.kind != "cpu"]) for recipe in recipes], plan)


def finish(arguments: Arguments, result: Result, measured: Outcome) -> int:
    """Prints builds and measurements; returns the exit code."""
    job = result.job
    whole = document.with_refused(document.built(result.outcome, job.outputs), job.refused, job.outputs)
    goals = {goal.name for goal in measured.plan.goals}
    for row in whole["recipes"]:
        if graph.bench_goal(row["name"]) in goals:
            row.update(measurement(job, row, measured))
    if arguments.options.json:
        json.dump(whole, sys.stdout, indent=1)
        print()
    else:
        from builder.report.bench import print_bench

        for row in whole["recipes"]:
            if row["status"] in ("failed", "unsupported"):
                print_recipe(row, sys.stdout, arguments.options.quiet)
        print_bench([row for row in whole["recipes"] if "bench" in row], sys.stdout)
    print_failures(job, result.outcome, arguments.options.debug)
    print_failures(job, measured, arguments.options.debug)
    return result.outcome.exit_code or measured.exit_code or refused_code(arguments, job)


def measurement(job: Job, row: dict[str, Any], measured: Outcome) -> dict[str, Any]:
    """What is added to a recipe's row of the document."""
    (done,) = measured.finished(graph.bench_goal(row["name"]))
    found: dict[str, Any] = {"steps": [*row["steps"], document.finished_row(done)]}
    if record := measured.records.get(done.id):
        taken = datetime.fromtimestamp(record.started, timezone.utc).isoformat(timespec="seconds")
        content = json.loads(job.store.read(record.outputs["bench.json"].digest))
        found["bench"] = {"measured": taken, "kept": done.status == "hit", **content}
    return found
