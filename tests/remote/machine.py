"""A machine with a store of its own that builds the toy recipe in this process, over the real stores."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_build.core.check import check
from llm_build.core.events import Event, Warned
from llm_build.core.filestore import FileStore
from llm_build.core.record import decode_record
from llm_build.core.run import Outcome, run
from llm_build.core.step import Resources
from llm_build.core.task import StepResult, StepTask, TaskDone, TaskReport
from llm_build.executors.output import StoreOut
from llm_build.remote.location import Location
from llm_build.remote.store import SharedStore, open_shared
from tests.core import toy


class Hands:
    """An executor that runs a job when it is waited for."""

    capacity = largest = Resources(2)

    def __init__(self, store: FileStore) -> None:
        self.store = store
        self.jobs: list[StepTask] = []

    def submit(self, job: StepTask) -> None:
        self.jobs.append(job)

    def wait(self, timeout_s: float) -> list[TaskReport]:
        if not self.jobs:
            return []
        job = self.jobs.pop(0)
        reports: list[TaskReport] = []
        out = StoreOut(job, self.store, reports.append)
        module, _, function = job.function.partition(":")
        getattr(importlib.import_module(module), function)(job.params, job.inputs, out)
        return [*reports, TaskDone(job.id, StepResult(out.finish()))]

    def stop(self) -> None:
        self.jobs.clear()


class Machine:
    """``base``: its own folder. ``source``: the file that fetch watches, the same on all machines of a test."""

    def __init__(self, base: Path, source: Path, url: str, mode: str = "write", **options: Any) -> None:
        self.root = base
        self.source = source
        self.location = Location(url, mode, options.pop("options", {}), **options)
        self.events: list[Event] = []

    def open(self) -> SharedStore:
        return open_shared(self.root, self.location)

    def build(self, **settings: Any) -> Outcome:
        """The toy recipe, and then the uploads; the local store is whole afterwards."""
        self.events = []
        self.store = self.open()
        outcome = run(toy.plan(self.source, **settings), self.store, Hands(self.store), self.events.append)
        self.store.drain(self.events.append)
        assert not outcome.failed, [done.error for done in outcome.steps.values() if done.error]
        found = check(self.store)
        assert found.whole, found
        return outcome

    def ran(self, **settings: Any) -> set[str]:
        """Build, and the names of the steps that ran here."""
        return {done.name for done in self.build(**settings).steps.values() if done.status == "ran"}

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Warned)]


ALL = {"fetch", "shard", "quantize[0]", "quantize[1]", "quantize[2]", "quantize[3]", "package", "check"}


def digests(outcome: Outcome) -> Mapping[str, str]:
    """{output: digest} of the package."""
    return {name: output.digest for name, output in outcome.records["p"].outputs.items()}


def faults_of(objects: Mapping[str, bytes]) -> list[str]:
    """What is wrong with a shared store: manifests without all of their blobs, blobs that are not their names."""
    from llm_build.core.digest import digest_of_bytes

    wrong = []
    for name, data in objects.items():
        if name.startswith("blobs/") and digest_of_bytes(data).partition(":")[2] != name.rpartition("/")[2]:
            wrong.append(f"{name} is damaged")
        if name.startswith("records/"):
            record = decode_record(data, Path(name).stem)
            blobs = [o.digest.partition(":")[2] for o in record.outputs.values() if not o.of] if record else [""]
            wrong += [f"{name}: {hex_}" for hex_ in blobs if f"blobs/{hex_[:2]}/{hex_}" not in objects]
    return wrong
