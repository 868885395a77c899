"""From the shared store to the local one: records with all their blobs, each verified by digest on arrival."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from llm_build.core.digest import digest_of_file
from llm_build.core.disk import FULL, explain_os_error
from llm_build.core.errors import BuildError
from llm_build.core.events import Warned
from llm_build.core.filestore import FileStore
from llm_build.core.record import Output, Record
from llm_build.core.store import RemoteLookup
from llm_build.remote.bucket import Missing, OnBytes, TooLong, Unreachable
from llm_build.remote.connection import Connection
from llm_build.remote.layout import Damaged, blob_name, blobs_of, read_manifest, record_name
from llm_build.remote.signatures import accepts
from llm_build.remote.transfer_queue import TransferQueue

UNTRUSTED = (
    "{url} has results that were not made by you, nor signed by a key that you trust: they are not used. To use them, "
    "put the public key of who makes them into the folder of keys (docs/guides/store.md), or say store.trust=all"
)
_MOST_TIMES, _SLACK_BYTES = 8, 1 << 20
_ATTEMPTS = 2  # at a blob that arrives with other bytes: the line may be to blame


class _PendingDownload:
    """A record whose blobs are on their way."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.left = set(blobs_of(record.outputs))
        self.whole = True


class Downloads:
    def __init__(self, connection: Connection, store: FileStore) -> None:
        self.queue = TransferQueue("download", connection.location.transfers, self._download)
        self.incoming: Path | None = None  # a folder of the local store, while that is started
        self._connection = connection
        self._store = store
        self._lock = threading.Lock()
        self._requested: set[str] = set()
        self._pending: set[str] = set()
        self._answers: dict[str, Record | None] = {}
        self.refused: dict[str, Record] = {}  # by key: records of someone whom the user does not trust

    # Results by key

    def request(self, key: str) -> bool:
        """Begin to download the result of ``key``; RemoteLookup(key) follows. False when that was tried, or would be in
        vain."""
        with self._lock:
            if key in self._requested or self._answers.get(key, key) is None:
                return False
            self._requested.add(key)
            self._pending.add(key)
        self.queue.call(partial(self._request, key))
        return True

    def _request(self, key: str) -> None:
        record = self.record(key)
        if record is None:
            self._finish(key)
            return
        pending, blobs = _PendingDownload(record), blobs_of(record.outputs)
        for name, output in blobs.values():
            self.queue.submit(name, output, partial(self._blob_arrived, pending, name, output))
        if not blobs:
            self._commit(pending)

    def _blob_arrived(self, pending: _PendingDownload, name: str, output: Output, error: Exception | None) -> None:
        if error:
            self._report_failure(error, blob_name(output.digest), output.digest, f" ({name})")
        with self._lock:
            pending.whole = pending.whole and error is None
            pending.left.discard(output.digest)
            if pending.left:
                return
        self._commit(pending)

    def _commit(self, pending: _PendingDownload) -> None:
        """All blobs are here: write the local manifest."""
        record = pending.record
        if pending.whole and record.key in self._pending:
            try:
                FileStore.commit(self._store, record._replace(outputs=self.with_local_mtimes(record.outputs)))
            except BuildError as error:
                self._connection.events.put(error)
            except FileNotFoundError:
                pass  # a gc of this machine was quicker: the step finds nothing and runs
        self._finish(record.key)

    def _finish(self, key: str) -> None:
        with self._lock:
            if key not in self._pending:
                return
            self._pending.discard(key)
        self._connection.events.put(RemoteLookup(key))

    def abandon(self) -> list[RemoteLookup]:
        """Answers that will not come any more."""
        with self._lock:
            keys, self._pending = self._pending, set()
        return [RemoteLookup(key) for key in sorted(keys)]

    def request_records(self, keys: Iterable[str]) -> list[threading.Event]:
        """Ask for many records at once, without their blobs; ``record`` has the answers when the events are set."""
        events = []
        for key in keys:
            events.append(threading.Event())
            self.queue.call(partial(self._answer, key, events[-1]))
        return events

    def _answer(self, key: str, event: threading.Event) -> None:
        self.record(key)
        event.set()

    def record(self, key: str) -> Record | None:
        """The remote's record, remembered; None when there is none, or none that can be read."""
        if key not in self._answers:
            self._answers[key] = self._read(key)
        return self._answers[key]

    def _refuse(self, record: Record) -> None:
        if not self.refused:
            self._connection.events.put(Warned("", "", UNTRUSTED.format(url=self._connection.location.url)))
        self.refused[record.key] = record

    def _read(self, key: str) -> Record | None:
        try:
            raw = self._connection.bucket().read(record_name(key))
            record = read_manifest(raw, key)
            if accepts(self._store.seals, raw, record):
                return record
            self._refuse(record)
        except Missing:
            pass
        except Exception as error:
            self._report_failure(error, record_name(key), key)
        return None

    def _report_failure(self, error: Exception, name: str, mark: str, more: str = "") -> None:
        """Say what is wrong with an object, or give the store up."""
        connection = self._connection
        if isinstance(error, (Damaged, Missing)):
            connection.damaged.add(mark)
            what = f"is damaged: {error}" if isinstance(error, Damaged) else "is missing"
            connection.warn(f"the shared store {connection.location.url}: {name}{more} {what}; its step runs here")
        elif isinstance(error, OSError) and error.errno in FULL:
            connection.events.put(explain_os_error(error, f"cannot download {name}{more}", self._store.root))
        else:
            connection.give_up(error)

    # Blobs

    def _download(self, name: str, output: Output, on_bytes: OnBytes) -> None:
        if self._is_here(output):
            return
        bucket, incoming = self._connection.bucket(), self.incoming
        if incoming is None:
            raise Unreachable("the build has ended")
        for _ in range(_ATTEMPTS):
            target = incoming / os.urandom(8).hex()
            try:
                bucket.get(blob_name(output.digest), target, _up_to(output.nbytes, on_bytes))
                nbytes, digest = os.stat(target).st_size, digest_of_file(target, threads=1)
                if digest == output.digest:
                    self._store.ingest({name: target}, threads=1)
                    return
            except TooLong as error:
                raise Damaged(f"far more than the {output.nbytes} bytes that it should have") from error
            finally:
                target.unlink(missing_ok=True)
        raise Damaged(f"{nbytes} bytes of {digest[:15]}..., expected {output.nbytes} of {output.digest[:15]}...")

    def _is_here(self, output: Output) -> bool:
        path = self._store.path(output.digest)
        try:
            return os.stat(path).st_size == output.nbytes and self._store.file_digest(path) == output.digest
        except FileNotFoundError:
            return False

    def with_local_mtimes(self, outputs: Mapping[str, Output]) -> dict[str, Output]:
        """Outputs with the mtimes of the blobs here. FileNotFoundError."""
        return {
            name: output
            if output.of
            else output._replace(mtime_ns=os.stat(self._store.path(output.digest)).st_mtime_ns)
            for name, output in outputs.items()
        }


def _up_to(most: int, on_bytes: OnBytes) -> OnBytes:
    """Passes on what arrives, and stops it where it is far more than the object has: a disk may not be filled by it.
    What breaks off and is tried again counts again."""
    arrived, limit = 0, _MOST_TIMES * most + _SLACK_BYTES

    def count(nbytes: int) -> None:
        nonlocal arrived
        arrived += nbytes
        if arrived > limit:
            raise TooLong
        on_bytes(nbytes)

    return count
