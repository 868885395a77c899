"""Results from the shared store alone: nothing is computed but the digests of a checkpoint that is on this machine."""

from __future__ import annotations

from llm_build.core.errors import StepError
from llm_build.core.events import Event, Finished, Listener, Planned, Progress, Started, Warned
from llm_build.core.record import Record
from llm_build.core.step import Resources
from llm_build.core.store import RemoteLookup
from llm_build.core.task import Executor, StepTask, TaskDone, TaskReport
from llm_build.remote.downloads import UNTRUSTED
from llm_build.remote.store import POLL_S, SharedStore


class Reader:
    """An executor that lets steps run which read files of this machine (their keys hold inode numbers, so no other
    machine's result is theirs), and no others."""

    def __init__(self, executor: Executor, store: SharedStore) -> None:
        self._executor = executor
        self._store = store
        self._refused: list[TaskReport] = []

    @property
    def capacity(self) -> Resources:
        return self._executor.capacity

    @property
    def largest(self) -> Resources:
        return self._executor.largest

    def submit(self, task: StepTask) -> None:
        if "watch" in task.inputs:
            self._executor.submit(task)
            return
        url = self._store.location.url
        if self._store.downloads.refused:
            error = StepError(UNTRUSTED.format(url=url), "build makes it here, or one of the two")
        else:
            error = StepError(f"its result is not in {url}", "build makes it here; build push, where it was made")
        self._refused.append(TaskDone(task.id, None, error))

    def wait(self, timeout_s: float) -> list[TaskReport]:
        refused, self._refused = self._refused, []
        return refused + self._executor.wait(0.0 if refused else timeout_s)

    def stop(self) -> None:
        self._executor.stop()


def without_steps(listener: Listener) -> Listener:
    """Passes on what is about transfers and about reading the checkpoint, not what a build would say of its steps."""
    sources: set[str] = set()  # ids of the steps that read files of this machine
    reading: set[str] = set()  # those of them that run

    def forward(event: Event) -> None:
        match event:
            case Planned():
                sources.update(step.id for step in event.plan.steps.values() if step.watch)
                listener(event)
            case Warned() | Progress(id=""):
                listener(event)
            case Started() if event.id in sources:
                reading.add(event.id)
                listener(event)
            case Progress() | Finished() if event.id in reading:
                listener(event)

    return forward


def pull_keys(store: SharedStore, keys: list[str], listener: Listener) -> dict[str, Record]:
    """The records of ``keys`` that are here or were brought here whole. BuildError when the local store fails."""
    store.start()
    try:
        waiting = {key for key in keys if not store.load(key, repair=True).record and store.request_remote(key)}
        while waiting:
            for event in store.poll_events(POLL_S):
                if isinstance(event, RemoteLookup):
                    waiting.discard(event.key)
                else:
                    listener(event)
        return {key: record for key in keys if (record := store.load(key).record)}
    finally:
        store.stop()
