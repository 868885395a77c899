"""What would run and why. Nothing runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, NamedTuple

from llm_build.app import cells
from llm_build.app.buildable import is_undecided
from llm_build.app.options import BuildOptions
from llm_build.app.places import examine_stores
from llm_build.app.request import UNDECIDED, BuildRequest
from llm_build.core.events import Listener
from llm_build.core.examine import StepStatus, examine
from llm_build.planner.feasibility import sizing
from llm_build.planner.feasibility.device_memory import Memory
from llm_build.planner.schemes.stored_bits import StoredBits, stored_bits_of
from llm_build.report import document


class PlanReport(NamedTuple):
    """``memory`` of a run and ``bits`` per weight, by recipe; none of those whose rules are undecided."""

    verdicts: Mapping[str, StepStatus]
    memory: Mapping[str, Memory]
    bits: Mapping[str, StoredBits]


def plan(options: BuildOptions, request: BuildRequest, warn: Listener) -> PlanReport:
    """Raises UserError when options.locked and the request does not match its lock. ``warn`` hears of transfers."""
    if options.locked:
        from llm_build.app.lock_check import require_match

        require_match(options, request)
    verdicts = examine_stores(request.plan, request.store)
    request.store.drain(warn)
    decided = [recipe for recipe in request.recipes if not recipe.undecided]
    memory = {recipe.name: sizing.memory_of(recipe) for recipe in decided}
    return PlanReport(verdicts, memory, {recipe.name: stored_bits_of(recipe) for recipe in decided})


def plan_document(request: BuildRequest, report: PlanReport) -> dict[str, Any]:
    """The --json document; of a sweep with its matrix."""
    rows = document.planned(request.plan.goals, report.verdicts, request.outputs)
    rows = document.with_refused(rows, request.refused, request.outputs)
    for recipe in rows["recipes"]:
        name = recipe["name"]
        if is_undecided(request, name):
            recipe["undecided"] = UNDECIDED
        if memory := report.memory.get(name):
            recipe["memory"] = {**asdict(memory), "total": memory.total}
            recipe["bits_per_weight"] = report.bits[name]._asdict()
    if request.is_sweep:
        rows["matrix"] = cells.matrix_document(cells.before_build(request, report.verdicts))
    return rows


def step_statuses(request: BuildRequest) -> dict[str, str]:
    """Fresh, stale or blocked for every step of the plan; a fan-out is fresh when all its parts are."""
    verdicts = examine(request.plan, request.store)
    statuses = {}
    for id_ in request.plan.steps:
        own = [v.status for v in verdicts.values() if v.step.id == id_ or v.step.id.startswith(f"{id_}[")]
        statuses[id_] = next((s for s in ("stale", "blocked") if s in own), "fresh")
    return statuses
