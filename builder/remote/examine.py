"""Is each step up to date, with what the shared store has counted as there? Brings records, and no results."""

from __future__ import annotations

from llm_build.core.errors import StepError
from llm_build.core.examine import StepStatus, examine
from llm_build.core.filestore import FileStore
from llm_build.core.plan import Plan
from llm_build.core.record import Lookup, Record
from llm_build.remote.layout import blobs_of
from llm_build.remote.store import SharedStore


class _View(FileStore):
    """The local store, with records that the shared one has. ``unknown_keys``: keys that neither is known to have."""

    def __init__(self, store: SharedStore) -> None:
        super().__init__(store.root)
        self.shared = store
        self.unknown_keys: set[str] = set()
        self.asked: set[str] = set()
        self.remote_records: dict[str, Record] = {}

    def load(self, key: str, repair: bool = False) -> Lookup:
        lookup = super().load(key, repair)
        if lookup.record:
            return lookup
        if key in self.remote_records:
            return Lookup(self.remote_records[key])
        self.unknown_keys.add(key)
        return lookup

    def read(self, digest: str) -> bytes:
        """A small blob that the plan itself depends on: a list of items, rules. Brought when it is not here."""
        try:
            return super().read(digest)
        except FileNotFoundError:
            output = next(
                o for record in self.remote_records.values() for o in record.outputs.values() if o.digest == digest
            )
            try:
                self.shared.download({"items": output})
            except StepError as error:
                raise _Unreadable(digest) from error
            finally:
                self.shared.stop()
            return super().read(digest)


class _Unreadable(Exception):
    def __init__(self, digest: str) -> None:
        super().__init__(digest)
        self.digest = digest


def examine_with_remote(plan: Plan, store: SharedStore) -> dict[str, StepStatus]:
    """A verdict per step id, as examine(); one whose result the shared store has is fresh and says so. Warnings about
    the shared store are among the store's events; without an answer from there, the verdicts are those of here."""
    view = _View(store)
    while True:
        try:
            verdicts = examine(plan, view)
        except _Unreadable as error:
            view.remote_records = {
                key: r for key, r in view.remote_records.items() if error.digest not in blobs_of(r.outputs)
            }
            continue
        unknown = view.unknown_keys - view.asked
        records = store.records(unknown) if unknown else {}
        if not records:
            break
        view.asked |= unknown
        view.remote_records |= records
    shared = {
        id_: v._replace(reason="in the shared store") for id_, v in verdicts.items() if v.key in view.remote_records
    }
    return verdicts | shared
