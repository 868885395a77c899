"""Steps in this process, on a store in memory: the fake executor that scheduler tests use."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from llm_build.core.errors import BuildError, StepError
from llm_build.core.record import Output
from llm_build.core.step import Resources
from llm_build.core.step_io import File, Json
from llm_build.core.task import StepResult, StepTask, TaskDone, TaskProgress, TaskReport, TaskWarned
from tests.core.memory_store import MemoryStore

Bytes = Mapping[str, "bytes | Mapping[str, bytes]"]


class MemoryOut:
    """What a fake step writes to."""

    def __init__(self, task: StepTask, store: MemoryStore, reports: list[TaskReport]) -> None:
        self.outputs: dict[str, Output] = {}
        self.facts: dict[str, Json] = {}
        self.warnings: list[str] = []
        self._task = task
        self._store = store
        self._reports = reports

    def write(self, name: str, data: bytes) -> None:
        self.outputs[name] = self._store.put(data)

    def fact(self, name: str, value: Json) -> None:
        self.facts[name] = value

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self._reports.append(TaskWarned(self._task.id, message))

    def progress(self, done: int, total: int, unit: str = "", label: str = "") -> None:
        self._reports.append(TaskProgress(self._task.id, done, total, unit, label))


FakeStep = Callable[[Mapping[str, Json], Bytes, MemoryOut], None]


class InProcessExecutor:
    """Runs ``functions`` by name, one for each ``wait``; ``started`` lists the names of the steps in the order they
    were submitted, ``most`` is the largest number of jobs that were out at one time, ``peak`` the most that jobs took
    at one time of each resource."""

    def __init__(self, store: MemoryStore, functions: Mapping[str, FakeStep], limits: Resources) -> None:
        self.started: list[str] = []
        self.most = 0
        self.peak = Resources(0)
        self._store = store
        self._functions = functions
        self._capacity = limits
        self._jobs: list[StepTask] = []

    @property
    def capacity(self) -> Resources:
        return self._capacity

    @property
    def largest(self) -> Resources:
        return self._capacity

    def submit(self, task: StepTask) -> None:
        self.started.append(task.name)
        self._jobs.append(task)
        self.most = max(self.most, len(self._jobs))
        taken = [each.resources for each in self._jobs]
        self.peak = Resources(
            max(self.peak.cpu, sum(each.cpu for each in taken)),
            max(self.peak.memory_bytes, sum(each.memory_bytes for each in taken)),
            max(self.peak.gpu, sum(each.gpu for each in taken)),
        )

    def wait(self, timeout_s: float) -> list[TaskReport]:
        if not self._jobs or not timeout_s:
            return []
        task = self._jobs.pop(0)
        reports: list[TaskReport] = []
        out = MemoryOut(task, self._store, reports)
        try:
            self._functions[task.function](task.params, self._inputs(task), out)
        except BuildError as error:
            return [*reports, TaskDone(task.id, None, error)]
        except ArithmeticError as error:  # what tests raise for a defect in a step
            return [*reports, TaskDone(task.id, None, StepError(f"{task.name} failed: {error}"))]
        return [*reports, TaskDone(task.id, StepResult(out.outputs, out.facts, tuple(out.warnings)))]

    def _inputs(self, task: StepTask) -> Bytes:
        found: dict[str, bytes | Mapping[str, bytes]] = {}
        for port, files in task.inputs.items():
            if isinstance(files, File):
                found[port] = self._store.read(files.digest)
            else:
                found[port] = {name: self._store.read(file.digest) for name, file in files.items()}
        return found

    def stop(self) -> None:
        self._jobs.clear()
