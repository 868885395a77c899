"""Which steps of two builds differ, and why, from what the store still knows of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from builder.core.digest import digest_of_names
from builder.core.examine import code_document
from builder.core.reason import Side, differences, sentence
from builder.core.record import Record
from builder.core.store import Store
from builder.planner.graph.bench import bench_goal
from builder.provenance.lock_file import Cell


class Rerun(NamedTuple):
    """A step whose keys differ. ``why`` is empty where the store has no record of one of them."""

    step: str
    last: str
    now: str
    why: str


def reruns(last: Cell, now: Cell, store: Store) -> list[Rerun]:
    """In the order of ``now``. Keys that one side does not know are left out."""
    found = []
    for step, key in now.steps.items():
        before = last.steps.get(step, key)
        if before != key:
            records = store.load(before).record, store.load(key).record
            why = reason(records[0], records[1], store) if records[0] and records[1] else ""
            found.append(Rerun(step, before, key, why))
    return found


def reason(last: Record, now: Record, store: Store) -> str:
    """In the words of `build plan`."""
    ports = {*last.parts["inputs"], *now.parts["inputs"]}
    labels = {port: (f"input {port}", "") for port in ports}
    return sentence(differences(side(last, store), side(now, store), labels))


def side(record: Record, store: Store) -> Side:
    return Side(record.parts, record.groups, store.load_document(code_document(record.parts["code"])))


def bench_of(name: str, cell: Cell, store: Store) -> Mapping[str, Any] | None:
    """What `build bench` measured of these very bytes, None when it did not, or the store has it no more."""
    place = next(iter(store.places(bench_goal(name)).values()), None)
    record = store.load(place.key).record if place else None
    if record is None or digest_of_names(cell.outputs) not in record.parts["inputs"].values():
        return None
    found: Mapping[str, Any] = json.loads(store.read(record.outputs["bench.json"].digest))
    return found
