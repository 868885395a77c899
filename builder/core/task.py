"""The executor seam: a task goes out, reports come back. Workers only run steps; they decide nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from llm_build.core.errors import BuildError
from llm_build.core.record import Output
from llm_build.core.step import Loads, Resources
from llm_build.core.step_io import InputFiles, Json


class StepTask(NamedTuple):
    id: str
    name: str
    function: str
    params: Mapping[str, Json]
    inputs: InputFiles
    context: Mapping[str, Json]
    resources: Resources  # within the executor's capacity; ``cpu`` is the number of threads
    scratch: Path  # an empty folder of its own; the log goes to scratch/log, outputs to scratch/out
    loads: Loads = ""  # Step.loads: an executor picks the process by it


class StepResult(NamedTuple):
    """What a step made; its blobs are in the store, synced."""

    outputs: Mapping[str, Output]
    facts: Mapping[str, Json] = {}
    warnings: tuple[str, ...] = ()
    started: float = 0.0
    seconds: float = 0.0
    peak_memory_bytes: int = 0


class TaskProgress(NamedTuple):
    id: str
    done: int
    total: int
    unit: str
    label: str


class TaskWarned(NamedTuple):
    id: str
    message: str


class TaskDone(NamedTuple):
    id: str
    result: StepResult | None
    error: BuildError | None = None


TaskReport = TaskProgress | TaskWarned | TaskDone


class Executor(Protocol):
    """Runs jobs somewhere. ``wait`` returns what came in within ``timeout_s``, at once when something is there."""

    @property
    def capacity(self) -> Resources:
        """What all jobs together may take."""
        ...

    @property
    def largest(self) -> Resources:
        """The most that one task can get: less than the capacity where that is several machines'."""
        ...

    def submit(self, task: StepTask) -> None: ...

    def wait(self, timeout_s: float) -> list[TaskReport]: ...

    def stop(self) -> None:
        """End every running task at once; nothing more is reported about them."""
        ...
