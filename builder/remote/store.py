"""A local store with a shared one behind it: what is missing here is looked for there, what is made here goes there.

No request is sent for what the local store has; nothing of fsspec is loaded before the first request."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from llm_build.core.errors import BuildError, StepError
from llm_build.core.events import Event, Listener
from llm_build.core.filestore import FileStore
from llm_build.core.record import Output, Record
from llm_build.core.store import RemoteLookup
from llm_build.remote.bucket import AccessDenied, Missing, Unreachable
from llm_build.remote.connection import Connection
from llm_build.remote.downloads import Downloads
from llm_build.remote.layout import Damaged, blob_name, blobs_of, provenance_name
from llm_build.remote.location import Location, check_location
from llm_build.remote.transfer_queue import TransferQueue
from llm_build.remote.uploads import Uploads

POLL_S = 0.1


def open_shared(root: Path, location: Location, trust: str = "signed") -> SharedStore:
    """The store at ``root`` with the shared one at ``location``; touches neither. UserError as open_store and
    check_location."""
    check_location(location)
    store = SharedStore(root.absolute(), location, trust)
    store.check_version()
    return store


class SharedStore(FileStore):
    """``load`` answers for the local store; ``request_remote`` and ``poll_events`` reach the shared one."""

    def __init__(self, root: Path, location: Location, trust: str = "signed") -> None:
        super().__init__(root, trust)
        self.location = location
        self.connection = Connection(location)
        self.downloads = Downloads(self.connection, self)
        self.uploads = Uploads(self.connection, self)
        self._used = False
        self._opening = threading.Lock()

    def start(self) -> None:
        super().start()
        if self.downloads.incoming is None:
            self.downloads.incoming = self.scratch()

    def stop(self) -> None:
        self.downloads.incoming = None
        super().stop()

    def _open(self) -> None:
        with self._opening:
            self.connection.open()
            self._used = True

    # What a build asks

    def request_remote(self, key: str) -> bool:
        if self.connection.given_up:
            return False
        self._open()
        self.start()
        return self.downloads.request(key)

    def poll_events(self, wait_s: float) -> list[Event | RemoteLookup]:
        """What happened, within ``wait_s`` seconds. BuildError when the local store failed (its disk is full)."""
        if not self._used:
            return []
        events: list[Event | RemoteLookup] = []
        try:
            while True:
                event = self.connection.events.get(timeout=0 if events else wait_s)
                if isinstance(event, BuildError):
                    raise event
                events.append(event)
        except queue.Empty:
            pass
        self.watch()
        if self.connection.given_up:
            events += self.downloads.abandon()
        return events + [each for queue_ in self._queues if (each := queue_.progress())]

    def records(self, keys: Iterable[str]) -> dict[str, Record]:
        """What the shared store has of ``keys``: records alone. Blocks; empty when it is away."""
        if self.connection.given_up:
            return {}
        self._open()
        missing = sorted(keys)
        for event in self.downloads.request_records(missing):
            while not event.wait(POLL_S):
                self.watch()
                if self.connection.given_up:
                    return {}
        return {key: record for key in missing if (record := self.downloads.record(key))}

    def read_provenance(self, key: str, file: str) -> str | None:
        """A small file beside the record of ``key``; None when there is none. Blocks."""
        self._open()
        try:
            return self.connection.bucket().read(provenance_name(key, file)).decode("utf-8", "replace")
        except (Missing, Unreachable, AccessDenied):
            return None

    @property
    def _queues(self) -> tuple[TransferQueue, TransferQueue]:
        return self.downloads.queue, self.uploads.queue

    def watch(self) -> None:
        """Give the shared store up when it has been silent for too long."""
        silence_s = max(transfers.silence_s() for transfers in self._queues)
        if silence_s > self.location.timeout_s:
            self.connection.give_up(
                Unreachable(f"no byte for {silence_s:.0f} s; store.timeout_s is {self.location.timeout_s:g}")
            )

    def commit(self, record: Record) -> None:
        """Keep a result here, and begin to upload it."""
        super().commit(record)
        if self.location.mode == "write":
            self.offer(record)

    def offer(self, record: Record) -> None:
        self._open()
        self.uploads.offer(record)

    def drain(self, listener: Listener) -> None:
        """Wait for the uploads, passing on events; ends early when the shared store is given up."""
        while self.uploads.pending:
            self.forward_events(listener, POLL_S)
        self.forward_events(listener, 0.0)

    def close(self) -> None:
        """Drop what is under way; the shared store stays valid."""
        self.connection.given_up = self.connection.given_up or Unreachable("closed")

    def forward_events(self, listener: Listener, wait_s: float) -> None:
        for each in self.poll_events(wait_s):
            if not isinstance(each, RemoteLookup):
                listener(each)

    # What an executor asks

    def download(self, outputs: Mapping[str, Output]) -> dict[str, Output]:
        """Download the blobs that are not here, verified; the outputs with their mtimes here. Blocks. StepError."""
        self._open()
        self.start()
        self._transfer_all(self.downloads.queue, outputs)
        return self.downloads.with_local_mtimes(outputs)

    def upload(self, outputs: Mapping[str, Output]) -> None:
        """Upload the blobs that the shared store lacks. Blocks. StepError."""
        self._open()
        self._transfer_all(self.uploads.queue, outputs)

    def _transfer_all(self, transfers: TransferQueue, outputs: Mapping[str, Output]) -> None:
        waiting: list[tuple[str, Output, list[Exception | None], threading.Event]] = []
        for name, output in blobs_of(outputs).values():
            waiting.append((name, output, [], threading.Event()))
            transfers.submit(name, output, partial(_note_end, waiting[-1][2], waiting[-1][3]))
        for name, output, errors, event in waiting:
            while not event.wait(POLL_S):
                self.watch()
                if self.connection.given_up:
                    raise self._failed(name, output, self.connection.given_up)
            if errors[0]:
                raise self._failed(name, output, errors[0])

    def _failed(self, name: str, output: Output, error: Exception) -> StepError:
        problem = {Missing: "is missing", Damaged: "is damaged"}.get(type(error), "cannot be moved")
        return StepError(f"{name} ({blob_name(output.digest)}) {problem} in {self.location.url}: {error}")


def _note_end(errors: list[Exception | None], event: threading.Event, error: Exception | None) -> None:
    errors.append(error)
    event.set()
