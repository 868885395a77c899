"""Where a stored tensor lies in its shard, as shard tells quantize."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from llm_build.quant.layout import StoredTensor


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """``offset``: bytes from the start of the shard file."""

    tensor: StoredTensor
    offset: int


def placed_to_json(placed: PlacedTensor) -> dict[str, Any]:
    return {**asdict(placed.tensor), "offset": placed.offset}


def placed_from_json(row: Mapping[str, Any]) -> PlacedTensor:
    """The inverse of ``placed_to_json``."""
    return PlacedTensor(StoredTensor(row["name"], tuple(row["shape"]), row["dtype"], row["role"]), row["offset"])
