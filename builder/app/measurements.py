"""What `build bench` measured before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_build.core.json_text import parse_json
from llm_build.core.store import Store
from llm_build.planner.graph.bench import bench_goal


def last_measurement(store: Store, name: str, model: str) -> Mapping[str, Any] | None:
    """What `build bench` measured of the artifact ``name`` when the digest of its files was ``model``; None when it did
    not, or the store has it no more."""
    place = next(iter(store.last_results(bench_goal(name)).values()), None)
    record = store.load(place.key).record if place else None
    try:
        if record is None or model not in record.parts["inputs"].values():
            return None
        content = parse_json(store.read(record.outputs["bench.json"].digest))
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return content if isinstance(content, dict) else None
