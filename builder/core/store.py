"""The store seam: what planner and coordinator ask of a store. FileStore is the real one, MemoryStore the fake."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from llm_build.core.events import Event
from llm_build.core.record import LastResult, Lookup, Output, Record
from llm_build.core.step_io import Json


class Lock(Protocol):
    def release(self) -> None: ...


class RemoteLookup(NamedTuple):
    """A result that was looked for elsewhere: it is in the store now, or nowhere."""

    key: str


class Store(Protocol):
    """Records by key, bytes by digest, last results by goal. Every write is atomic; a record is written after its
    bytes."""

    def load(self, key: str, repair: bool = False) -> Lookup:
        """The record of ``key``, its outputs checked by size and mtime. ``repair`` removes what is found damaged."""
        ...

    def commit(self, record: Record) -> None:
        """Make ``record`` the result of its key; its blobs are in the store already."""
        ...

    def request_remote(self, key: str) -> bool:
        """Look elsewhere for a result that is not here; ``poll_events`` has the answer. False: there is no elsewhere,
        or it was asked already."""
        ...

    def poll_events(self, wait_s: float) -> list[Event | RemoteLookup]:
        """Answers, and what else has happened, within ``wait_s`` seconds."""
        ...

    def path(self, digest: str) -> Path:
        """Where the blob of ``digest`` is."""
        ...

    def read(self, digest: str) -> bytes: ...

    def last_results(self, goal: str) -> dict[str, LastResult]:
        """{step name: its last result} of a goal, empty when never built."""
        ...

    def save_last_results(self, goal: str, results: Mapping[str, LastResult], whole: bool) -> None:
        """Merge ``results`` into the goal's, or replace them all (``whole``)."""
        ...

    def load_document(self, name: str) -> Json:
        """A small JSON document kept beside the records ("cache/meanings", "code/<hex>"), None when there is none."""
        ...

    def save_document(self, name: str, value: Json) -> None: ...

    def start(self) -> None:
        """Begin to build: keep gc away, clear what dead builds left. UserError when the store cannot be written."""
        ...

    def stop(self) -> None: ...

    def scratch(self) -> Path:
        """A new folder for one running step, on the file system of the store."""
        ...

    def discard(self, scratch: Path) -> None: ...

    def keep_log(self, scratch: Path, key: str) -> None:
        """Keep the log of a finished step (``scratch/log``) beside its record."""
        ...

    def lock(self, key: str) -> Lock | None:
        """The right to build ``key``, None while another build has it."""
        ...

    def lock_holder(self, key: str) -> int:
        """Process id of the build that has it, 0 when unknown."""
        ...


def nbytes_of(outputs: Mapping[str, Output]) -> int:
    """Bytes of a result that lie in the store (slices of other files cost nothing)."""
    return sum(output.nbytes for output in outputs.values() if not output.of)
