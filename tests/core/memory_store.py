"""A store in memory: the fake that scheduler tests use instead of a disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from llm_build.core.digest import sha256_hex
from llm_build.core.events import Event
from llm_build.core.record import LastResult, Lookup, Output, Record
from llm_build.core.step_io import Json
from llm_build.core.store import RemoteLookup


class NoLock:
    def release(self) -> None: ...


class MemoryStore:
    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.blobs: dict[str, bytes] = {}
        self.known_places: dict[str, dict[str, LastResult]] = {}
        self.documents: dict[str, Json] = {}

    def put(self, data: bytes) -> Output:
        digest = "sha256:" + sha256_hex(data)
        self.blobs[digest] = data
        return Output(digest, len(data))

    def load(self, key: str, repair: bool = False) -> Lookup:
        record = self.records.get(key)
        if record is None:
            return Lookup(None, "absent")
        for name, output in record.outputs.items():
            if not output.of and output.digest not in self.blobs:
                return Lookup(None, "missing", name)
        return Lookup(record)

    def commit(self, record: Record) -> None:
        self.records[record.key] = record

    def request_remote(self, key: str) -> bool:
        return False

    def poll_events(self, wait_s: float) -> list[Event | RemoteLookup]:
        return []

    def path(self, digest: str) -> Path:
        return Path("/memory") / digest

    def read(self, digest: str) -> bytes:
        return self.blobs[digest]

    def last_results(self, goal: str) -> dict[str, LastResult]:
        return dict(self.known_places.get(goal, {}))

    def save_last_results(self, goal: str, places: Mapping[str, LastResult], whole: bool) -> None:
        self.known_places[goal] = dict(places) if whole else {**self.last_results(goal), **places}

    def load_document(self, name: str) -> Json:
        return self.documents.get(name)

    def save_document(self, name: str, value: Json) -> None:
        self.documents[name] = value

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def scratch(self) -> Path:
        return Path("/memory/scratch")

    def discard(self, scratch: Path) -> None: ...

    def keep_log(self, scratch: Path, key: str) -> None: ...

    def lock(self, key: str) -> NoLock:
        return NoLock()

    def lock_holder(self, key: str) -> int:
        return 0
