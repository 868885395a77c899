"""The critical path: which ready step has the longest way to the end of the plan behind it."""

from __future__ import annotations

from collections.abc import Callable

from builder.core.plan import Plan, order, producers_of
from builder.core.record import LastResult
from builder.core.step import Step

UNKNOWN_S = 1.0  # what a step that never ran is taken to last


def critical_path_seconds(plan: Plan, last_result_of: Callable[[Step], LastResult | None]) -> dict[str, float]:
    """Seconds from the start of each step to the end of the plan, by what the steps took last time."""
    found: dict[str, float] = {}
    for id_ in reversed(order(plan)):
        step = plan.steps[id_]
        place = last_result_of(step)
        found[id_] = found.get(id_, 0.0) + (place.seconds if place else UNKNOWN_S)
        for producer in producers_of(step):
            found[producer] = max(found.get(producer, 0.0), found[id_])
    return found
