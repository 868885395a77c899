"""parameters.json, by which the steps between shard and package know where each stored tensor lies; and what an item of
cut reads of one shard."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llm_build.core.step_io import Json
from llm_build.formats.slicing import Slicing, slicing_from_json, slicing_to_json


@dataclass(frozen=True, slots=True)
class TensorLocation:
    """A stored tensor and its bytes in shard number ``shard``."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    shard: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class CutTensor:
    """A stored tensor, its bytes in the shard that an item of cut reads, and how ranks get their parts of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int
    slicing: Slicing | None  # None: every rank has all of it
    local: tuple[int, ...]  # shape on one rank


def parameter_table(locations: Sequence[TensorLocation], total_parameters: int) -> dict[str, Any]:
    return {"parameters": [asdict(location) for location in locations], "total_parameters": total_parameters}


def read_parameter_table(data: bytes) -> list[TensorLocation]:
    rows = json.loads(data)["parameters"]
    return [TensorLocation(**{**row, "shape": tuple(row["shape"])}) for row in rows]


def cut_tensor_to_json(tensor: CutTensor) -> dict[str, Any]:
    return {
        "name": tensor.name, "shape": list(tensor.shape), "dtype": tensor.dtype, "offset": tensor.offset,
        "nbytes": tensor.nbytes, "cut": slicing_to_json(tensor.slicing), "local": list(tensor.local),
    }  # fmt: skip


def cut_tensor_from_json(row: Mapping[str, Json]) -> CutTensor:
    return CutTensor(
        row["name"], tuple(row["shape"]), row["dtype"], row["offset"], row["nbytes"], slicing_from_json(row["cut"]),
        tuple(row["local"]),
    )  # fmt: skip
