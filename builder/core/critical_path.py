"""The critical path: which ready step has the longest way to the end of the plan behind it."""

from __future__ import annotations

from collections.abc import Callable

from llm_build.core.plan import Plan, order, producers_of
from llm_build.core.record import LastResult
from llm_build.core.step import Step

_UNKNOWN_S = 1.0  # what a step that never ran is taken to last


def critical_path_seconds(plan: Plan, last_result_of: Callable[[Step], LastResult | None]) -> dict[str, float]:
    """Seconds from the start of each step to the end of the plan, by what the steps took last time."""
    seconds: dict[str, float] = {}
    for id_ in reversed(order(plan)):
        step = plan.steps[id_]
        last = last_result_of(step)
        seconds[id_] = seconds.get(id_, 0.0) + (last.seconds if last else _UNKNOWN_S)
        for producer in producers_of(step):
            seconds[producer] = max(seconds.get(producer, 0.0), seconds[id_])
    return seconds
