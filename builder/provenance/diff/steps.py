"""Which steps of two builds differ, and why, from what the store still knows of them."""

from __future__ import annotations

from typing import NamedTuple

from llm_build.core.examine import code_document
from llm_build.core.reason import KeyState, differences, summarize_differences
from llm_build.core.record import Record
from llm_build.core.store import Store
from llm_build.provenance.lock_file import Cell, Names


class Rerun(NamedTuple):
    """A step whose keys differ. ``why`` is empty where the store has no record of one of them."""

    step: str
    last: str
    now: str
    why: str


def reruns(last: Cell, now: Cell, store: Store, recipe_keys: Names) -> list[Rerun]:
    """In the order of ``now``. Keys that one side does not know are left out. ``recipe_keys``: how a user types what
    steps have as parameters."""
    differing = []
    for step, key in now.steps.items():
        before = last.steps.get(step, key)
        if before != key:
            records = store.load(before).record, store.load(key).record
            why = _reason(records[0], records[1], store, recipe_keys) if records[0] and records[1] else ""
            differing.append(Rerun(step, before, key, why))
    return differing


def _reason(last: Record, now: Record, store: Store, recipe_keys: Names) -> str:
    """In the words of `build plan`."""
    ports = {*last.parts["inputs"], *now.parts["inputs"]}
    labels = {port: (f"input {port}", "") for port in ports}
    return summarize_differences(differences(_side(last, store), _side(now, store), labels, recipe_keys))


def _side(record: Record, store: Store) -> KeyState:
    return KeyState(record.parts, record.groups, store.load_document(code_document(record.parts["code"])))
