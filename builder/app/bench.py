"""Measure what was built on this machine, and find what was measured before."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

from llm_build.app import cells
from llm_build.app.build import BuildResult, bring_up_to_date
from llm_build.app.buildable import runnable
from llm_build.app.options import BuildOptions
from llm_build.app.request import BuildRequest
from llm_build.app.session import Session, local_executor
from llm_build.config.schema import Recipe
from llm_build.core.events import Planned
from llm_build.core.examine import examine
from llm_build.core.plan import Plan
from llm_build.core.run import Outcome, run
from llm_build.planner.graph.bench import NAME, bench_goal, bench_plan
from llm_build.report import document


class BenchResult(NamedTuple):
    result: BuildResult
    measured: Outcome


def bench(options: BuildOptions, request: BuildRequest, session: Session, again: bool = False) -> BenchResult:
    """Brings recipes up to date, then measures each artifact that was not measured here yet. ``again``: all of them.

    Raises Unsupported for a plain build that this machine cannot run."""
    result = bring_up_to_date(options, runnable(request, "bench measures"), session)
    request = result.request
    plan = bench_plan_of(
        [recipe for recipe in request.recipes if result.outcome.goal(recipe.name) != "failed"], request
    )
    if again:
        for verdict in examine(plan, request.store).values():
            if verdict.step.name == NAME and verdict.status == "fresh":
                request.store.forget(verdict.key)
    matrix = cells.before_measuring(request, plan)
    with session.listen(matrix) as listen, local_executor(request) as pool:
        listen(Planned(plan))
        measured = run(plan, request.store, pool, listen, keep_going=True)
    return BenchResult(result, measured)


def bench_plan_of(recipes: Sequence[Recipe], request: BuildRequest) -> Plan:
    """The plan of the measurements of some recipes of a request, on this machine."""
    from llm_build.targets import host_machine

    by_kind = {gpu: host_machine.describe(gpu) for gpu in {recipe.target.kind != "cpu" for recipe in recipes}}
    return bench_plan([(recipe, by_kind[recipe.target.kind != "cpu"]) for recipe in recipes], request.plan)


def bench_document(benched: BenchResult) -> dict[str, Any]:
    """The --json document of the build, with the measurements in the rows of their recipes."""
    result, measured = benched
    request = result.request
    built = document.built(result.outcome, request.outputs)
    rows = document.with_refused(built, request.refused, request.outputs)
    goals = {goal.name for goal in measured.plan.goals}
    for row in rows["recipes"]:
        if bench_goal(row["name"]) in goals:
            row.update(_measurement(request, row, measured))
    return rows


def _measurement(request: BuildRequest, row: Mapping[str, Any], measured: Outcome) -> dict[str, Any]:
    """What is added to a recipe's row of the document."""
    (done,) = measured.finished(bench_goal(row["name"]))
    added: dict[str, Any] = {"steps": [*row["steps"], document.finished_row(done)]}
    if record := measured.records.get(done.id):
        taken = datetime.fromtimestamp(record.started, timezone.utc).isoformat(timespec="seconds")
        content = json.loads(request.store.read(record.outputs["bench.json"].digest))
        added["bench"] = {"measured": taken, "kept": done.status == "fresh", **content}
    return added
