"""How far a compilation is, for the screen."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # stages done, stages in all, the one that starts now


class StageProgress:
    """Counts what was started."""

    def __init__(self, report: Progress, total: int) -> None:
        self.report, self.total, self.started = report, total, 0

    def start(self, name: str) -> None:
        self.report(self.started, self.total, name)
        self.started += 1

    def finish(self) -> None:
        self.report(self.total, self.total, "done")
