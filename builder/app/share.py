"""What commands do with a shared store beside building: require it, leave provenance there."""

from __future__ import annotations

import sys

from builder.app.request import Job
from builder.core.errors import UserError
from builder.core.events import Listener
from builder.core.filestore import FileStore
from builder.core.record import Record
from builder.provenance.statement import NAME, SIGNATURE
from builder.remote.store import SharedStore


def shared_of(store: FileStore, writes: bool = False) -> SharedStore:
    """The store of a command that is about the shared one. Raises UserError when there is none, or it is read only."""
    if not isinstance(store, SharedStore):
        raise UserError(
            "there is no shared store: store.remote is not set",
            "store.remote=s3://bucket/folder, or any other URL that fsspec knows",
        )
    if writes and store.location.mode == "readonly":
        raise UserError(f"store.mode is readonly: nothing is changed in {store.location.url}", "store.mode=write")
    return store


def announce(job: Job, built: dict[str, Record]) -> None:
    """After a build: publish, where that is allowed."""
    from builder.report.lines import Lines

    store = shared_of(job.store)
    if store.location.mode == "write" and not store.connection.trouble():
        publish(job, built, Lines(sys.stderr, quiet=True))


def publish(job: Job, records: dict[str, Record], listen: Listener) -> None:
    """Leave build.json, and its signature, of recipes by name beside the record of their artifact: a pull by lock file
    has no other way to it."""
    store = shared_of(job.store, writes=True)
    for name, record in records.items():
        for file in (NAME, SIGNATURE):
            path = job.outputs[name] / file
            if path.is_file():
                store.uploads.leave(record.key, file, path.read_bytes())
    store.drain(listen)
