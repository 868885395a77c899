"""The parts of a step's key, now and last time."""

from __future__ import annotations

import json
from typing import Any

from llm_build.app.request import UNDECIDED, BuildRequest
from llm_build.core.errors import UserError
from llm_build.core.why import Explanation, explain
from llm_build.planner.graph import bench

_OPERATORS = "operators.json"  # an output of the step that compiles a library


def explain_step(request: BuildRequest, step: str) -> Explanation:
    """Raises UserError for a step that the plan has not, with the names it has."""
    plan = request.plan
    if step == bench.NAME:  # which is planned by its own command only
        from llm_build.app.bench import bench_plan_of

        plan = bench_plan_of([recipe for recipe in request.recipes if not recipe.undecided], request)
    try:
        return explain(plan, request.store, step)
    except UserError as error:
        if not any(recipe.undecided for recipe in request.recipes):
            raise
        raise UserError(f"{error.message}; {UNDECIDED}", "build plan") from error


def operator_kernels(request: BuildRequest, explanation: Explanation) -> list[dict[str, Any]]:
    """The kernel of each operator in the last library of a step, and what it was chosen by (lowering/choices.py); empty
    for a step that compiles none, and where there was none yet."""
    record = request.store.load(explanation.last_key).record if explanation.last_key else None
    if explanation.step.role != "library" or record is None or _OPERATORS not in record.outputs:
        return []
    kernels: list[dict[str, Any]] = json.loads(request.store.read(record.outputs[_OPERATORS].digest))
    return kernels
