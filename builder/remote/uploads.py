"""From the local store to the shared one, in the background: blobs that it lacks, then the manifest.

An upload first writes what it is about to refer to (uploads/<key>.json), waits while a gc removes blobs, and then looks
which blobs are there (gc.py says why)."""

from __future__ import annotations

import threading
import time
from functools import partial

from llm_build.core.digest import digest_of_file
from llm_build.core.filestore import FileStore
from llm_build.core.record import Output, Record
from llm_build.remote.bucket import AccessDenied, Missing, OnBytes, Unreachable
from llm_build.remote.connection import Connection
from llm_build.remote.gc import is_running
from llm_build.remote.layout import Damaged, blob_name, blobs_of, manifest, provenance_name, record_name, upload_name
from llm_build.remote.transfer_queue import TransferQueue

_GC_POLL_S = 0.5


class _PendingUpload:
    """A record whose blobs are on their way."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.left = set(blobs_of(record.outputs))
        self.whole = True


class Uploads:
    def __init__(self, connection: Connection, store: FileStore) -> None:
        self.queue = TransferQueue("upload", connection.location.transfers, self._upload, patient=True)
        self._connection = connection
        self._store = store
        self._lock = threading.Lock()
        self._pending: set[str] = set()  # keys of results, names of small files
        self._uploaded: set[str] = set()  # digests that are there because of this command

    @property
    def pending(self) -> bool:
        connection = self._connection
        return bool(self._pending) and not (connection.given_up or connection.unwritable)

    def offer(self, record: Record) -> None:
        """Begin to upload a result. One that only this machine can find again, and is large, stays here."""
        if _is_local_only(record) or self._connection.given_up or self._connection.unwritable:
            return
        with self._lock:
            self._pending.add(record.key)
        self.queue.call(partial(self._begin, record))

    def write_provenance(self, key: str, file: str, data: bytes) -> None:
        """Begin to write a small file beside the record of ``key``."""
        name = provenance_name(key, file)
        with self._lock:
            self._pending.add(name)
        self.queue.call(partial(self._write_provenance, name, data))

    def _write_provenance(self, name: str, data: bytes) -> None:
        try:
            self._connection.writable().write(name, data)
        except Exception as error:
            self._fail(error, name)
        self._finish(name)

    def _begin(self, record: Record) -> None:
        try:
            bucket = self._connection.writable()
            bucket.write(upload_name(record.key), manifest(record, self._store.seals))
            if is_running(bucket):
                time.sleep(_GC_POLL_S)
                self.queue.call(partial(self._begin, record))
                return
        except Exception as error:
            self._fail(error, record.key)
            return
        pending, blobs = _PendingUpload(record), blobs_of(record.outputs)
        for name, output in blobs.values():
            self.queue.submit(name, output, partial(self._blob_uploaded, pending, output))
        if not blobs:
            self._write_manifest(pending)

    def _blob_uploaded(self, pending: _PendingUpload, output: Output, error: Exception | None) -> None:
        if error:
            self._fail(error, pending.record.key)
        with self._lock:
            pending.whole = pending.whole and error is None
            pending.left.discard(output.digest)
            if pending.left:
                return
        if pending.whole:
            self._write_manifest(pending)

    def _write_manifest(self, pending: _PendingUpload) -> None:
        record = pending.record
        try:
            bucket = self._connection.writable()
            bucket.write(record_name(record.key), manifest(record, self._store.seals))
            bucket.remove([upload_name(record.key)])
        except Exception as error:
            self._fail(error, record.key)
            return
        self._finish(record.key)

    def _finish(self, what: str) -> None:
        with self._lock:
            self._pending.discard(what)

    def _fail(self, error: Exception, what: str) -> None:
        connection = self._connection
        if connection.unwritable or connection.given_up:
            pass  # that was reported
        elif isinstance(error, Damaged):
            connection.warn(f"{error}; not uploaded. `build doctor --store` finds all such files")
        elif isinstance(error, (AccessDenied, Missing)):
            connection.close_for_writing(error)
        else:
            connection.give_up(error)
        self._finish(what)

    # Blobs

    def _upload(self, name: str, output: Output, on_bytes: OnBytes) -> None:
        if output.digest in self._uploaded:
            return
        bucket = self._connection.writable()
        if self._connection.unwritable:
            raise Unreachable("uploads were given up") from self._connection.unwritable
        is_good = output.digest not in self._connection.damaged
        if is_good and bucket.nbytes(blob_name(output.digest)) == output.nbytes:
            return
        self._put(name, output, on_bytes)

    def _put(self, name: str, output: Output, on_bytes: OnBytes) -> None:
        path = self._store.path(output.digest)
        if not path.exists() or digest_of_file(path, threads=1) != output.digest:
            raise Damaged(f"{name} ({path}) is gone from the local store or damaged there")
        self._connection.writable().put(blob_name(output.digest), path, on_bytes)
        self._uploaded.add(output.digest)


def _is_local_only(record: Record) -> bool:
    """A checkpoint turned into another format: its key holds inode numbers, and its bytes may be many."""
    return bool(record.parts.get("watch")) and any(
        output.of.startswith("output:") for output in record.outputs.values()
    )
