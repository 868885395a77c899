"""What `build bench` measured before."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llm_build.core.store import Store
from llm_build.planner.graph.bench import bench_goal


def last_measurement(store: Store, name: str, model: str) -> Mapping[str, Any] | None:
    """What `build bench` measured of the artifact ``name`` when the digest of its files was ``model``; None when it did
    not, or the store has it no more."""
    place = next(iter(store.last_results(bench_goal(name)).values()), None)
    record = store.load(place.key).record if place else None
    if record is None or model not in record.parts["inputs"].values():
        return None
    content: Mapping[str, Any] = json.loads(store.read(record.outputs["bench.json"].digest))
    return content
