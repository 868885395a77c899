"""From the local store to the shared one, in the background: blobs that it lacks, then the manifest.

An upload first writes what it is about to refer to (uploads/<key>.json), waits while a gc removes blobs, and then looks
which blobs are there (gc.py says why)."""

from __future__ import annotations

import threading
import time
from functools import partial

from builder.core.digest import digest_of_file
from builder.core.filestore import FileStore
from builder.core.record import Output, Record
from builder.remote.bucket import AccessDenied, Missing, OnBytes, Unreachable
from builder.remote.connection import Connection
from builder.remote.gc import is_running
from builder.remote.layout import Damaged, blob_name, blobs_of, manifest, provenance_name, record_name, upload_name
from builder.remote.transfer_queue import TransferQueue

GC_POLL_S = 0.5


class _PendingUpload:
    """A record whose blobs are on their way."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.left = set(blobs_of(record.outputs))
        self.whole = True


class Uploads:
    def __init__(self, connection: Connection, store: FileStore) -> None:
        self.queue = TransferQueue("upload", connection.location.transfers, self._send, patient=True)
        self._connection = connection
        self._store = store
        self._guard = threading.Lock()
        self._going: set[str] = set()  # keys of results, names of small files
        self._sent: set[str] = set()  # digests that are there because of this command

    @property
    def pending(self) -> bool:
        connection = self._connection
        return bool(self._going) and not (connection.lost or connection.unwritable)

    def offer(self, record: Record) -> None:
        """Begin to upload a result. One that only this machine can find again, and is large, stays here."""
        if _only_here(record) or self._connection.lost or self._connection.unwritable:
            return
        with self._guard:
            self._going.add(record.key)
        self.queue.call(partial(self._begin, record))

    def leave(self, key: str, file: str, data: bytes) -> None:
        """Begin to write a small file beside the record of ``key``."""
        name = provenance_name(key, file)
        with self._guard:
            self._going.add(name)
        self.queue.call(partial(self._leave, name, data))

    def _leave(self, name: str, data: bytes) -> None:
        try:
            self._connection.writable().write(name, data)
        except Exception as error:
            self._fail(error, name)
        self._over(name)

    def _begin(self, record: Record) -> None:
        try:
            bucket = self._connection.writable()
            bucket.write(upload_name(record.key), manifest(record))
            if is_running(bucket):
                time.sleep(GC_POLL_S)
                self.queue.call(partial(self._begin, record))
                return
        except Exception as error:
            self._fail(error, record.key)
            return
        going, wanted = _PendingUpload(record), blobs_of(record.outputs)
        for name, output in wanted.values():
            self.queue.submit(name, output, partial(self._went, going, output))
        if not wanted:
            self._keep(going)

    def _went(self, going: _PendingUpload, output: Output, error: Exception | None) -> None:
        if error:
            self._fail(error, going.record.key)
        with self._guard:
            going.whole = going.whole and error is None
            going.left.discard(output.digest)
            if going.left:
                return
        if going.whole:
            self._keep(going)

    def _keep(self, going: _PendingUpload) -> None:
        record = going.record
        try:
            bucket = self._connection.writable()
            bucket.write(record_name(record.key), manifest(record))
            bucket.remove([upload_name(record.key)])
        except Exception as error:
            self._fail(error, record.key)
            return
        self._over(record.key)

    def _over(self, what: str) -> None:
        with self._guard:
            self._going.discard(what)

    def _fail(self, error: Exception, what: str) -> None:
        connection = self._connection
        if connection.unwritable or connection.lost:
            pass  # that was said
        elif isinstance(error, Damaged):
            connection.warn(f"{error}; not uploaded. `build doctor --store` finds all such files")
        elif isinstance(error, (AccessDenied, Missing)):
            connection.close_for_writing(error)
        else:
            connection.lose(error)
        self._over(what)

    # Blobs

    def _send(self, name: str, output: Output, moved: OnBytes) -> None:
        if output.digest in self._sent:
            return
        bucket = self._connection.writable()
        if self._connection.unwritable:
            raise Unreachable("uploads were given up") from self._connection.unwritable
        is_good = output.digest not in self._connection.bad
        if is_good and bucket.nbytes(blob_name(output.digest)) == output.nbytes:
            return
        self._put(name, output, moved)

    def _put(self, name: str, output: Output, moved: OnBytes) -> None:
        path = self._store.path(output.digest)
        if not path.exists() or digest_of_file(path, threads=1) != output.digest:
            raise Damaged(f"{name} ({path}) is gone from the local store or damaged there")
        self._connection.writable().put(blob_name(output.digest), path, moved)
        self._sent.add(output.digest)


def _only_here(record: Record) -> bool:
    """A checkpoint turned into another format: its key holds inode numbers, and its bytes may be many."""
    return bool(record.parts["watch"]) and any(output.of.startswith("output:") for output in record.outputs.values())
