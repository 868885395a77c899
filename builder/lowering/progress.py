"""How far a compilation is, for the screen, and what each of its stages made, for who wants to see it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Progress = Callable[[int, int, str], None]  # stages done, stages in all, the one that starts now


class Observer(Protocol):
    """Sees what stages make (builder/lowering/dump.py writes it down)."""

    def graph(self, stage: str, module: Any) -> None:
        """The module after a pass over the graph."""

    def machine_code(self, function: str, module: Any) -> None:
        """The compiled module of a CPU: of one ``function``, or of all that run on a GPU's host."""

    def device_code(self, source: str, kind: str) -> None:
        """The source of all kernels of a GPU of this ``kind``, as its compiler gets it."""

    def device_binary(self, code: bytes, ending: str) -> None:
        """What the GPU's compiler made of it: a file with this ``ending``."""


_ALLOWANCE = 48  # stages of a backend before they are known: 25 of a GPU, 33 to 45 functions of a CPU's library


class StageProgress:
    """Counts what was started. ``total``: the stages that are known from the start; those of the backend follow from
    the graph, and an allowance stands for them until ``expect``, so that the whole does not grow on the way."""

    def __init__(self, report: Progress, total: int, observer: Observer | None = None) -> None:
        self.report, self.total, self.started, self.observer = report, total + _ALLOWANCE, 0, observer

    def expect(self, stages: int) -> None:
        """How many stages the backend has."""
        self.total += stages - _ALLOWANCE

    def start(self, name: str) -> None:
        self.report(self.started, self.total, name)
        self.started += 1

    def finish(self) -> None:
        self.report(self.total, self.total, "done")
