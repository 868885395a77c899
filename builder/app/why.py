"""The parts of a step's key, now and last time."""

from __future__ import annotations

from builder.app.request import UNDECIDED, BuildRequest
from builder.core.errors import UserError
from builder.core.why import Explanation, explain
from builder.planner.graph import bench


def explain_step(request: BuildRequest, step: str) -> Explanation:
    """Raises UserError for a step that the plan has not, with the names it has."""
    plan = request.plan
    if step == bench.NAME:  # which is planned by its own command only
        from builder.app.bench import bench_plan_of

        plan = bench_plan_of([recipe for recipe in request.recipes if not recipe.undecided], request)
    try:
        return explain(plan, request.store, step)
    except UserError as error:
        if not any(recipe.undecided for recipe in request.recipes):
            raise
        raise UserError(f"{error.message}; {UNDECIDED}", "build plan") from error
