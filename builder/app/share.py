"""What verbs do with a shared store beside building: require it, leave provenance there."""

from __future__ import annotations

from llm_build.app.request import BuildRequest
from llm_build.core.errors import UserError
from llm_build.core.events import Listener
from llm_build.core.filestore import FileStore
from llm_build.core.record import Record
from llm_build.core.small_file import read_small
from llm_build.provenance.statement import NAME, SIGNATURE
from llm_build.remote.store import SharedStore


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


def publish_if_allowed(request: BuildRequest, built: dict[str, Record], warn: Listener) -> None:
    """After a build: publish, where store.mode allows it and the shared store can be reached."""
    store = shared_of(request.store)
    if store.location.mode == "write" and not store.connection.failure():
        publish(request, built, warn)


def publish(request: BuildRequest, records: dict[str, Record], listen: Listener) -> None:
    """Leave build.json, and its signature, of recipes by name beside the record of their artifact: a pull by lock file
    has no other way to it."""
    store = shared_of(request.store, writes=True)
    for name, record in records.items():
        for file in (NAME, SIGNATURE):
            path = request.outputs[name] / file
            if path.is_file():
                store.uploads.write_provenance(record.key, file, read_small(path))
    store.drain(listen)
