"""One vocabulary for what becomes of a step, a goal and a cell of a sweep; events and --json documents use it too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

# Before a run: fresh (its result is there), stale (it has to run), blocked (that is not known before others ran).
# After it: fresh (nothing had to run), ran, failed, skipped (another one failed). unsupported: it was not planned.
Status = Literal["fresh", "stale", "blocked", "ran", "failed", "skipped", "unsupported"]
LiveStatus = Status | Literal["waiting", "running"]  # of what is watched while a build is on its way
DONE: tuple[Status, ...] = ("fresh", "ran")  # it has its result


def status_of_all(statuses: Iterable[Status]) -> Status:
    """The status of a goal whose steps have these, after a run: failed when one has no result."""
    known = set(statuses)
    if not known <= set(DONE):
        return "failed"
    return "ran" if "ran" in known else "fresh"
