"""tensor-cache.json: where each stored tensor lies; older readers call the same content ndarray-cache.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from builder.core.step_io import Json


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor and its bytes in a shard file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int
    shard: str  # file name
    format: str = "raw"  # raw | f32-to-bf16 (float32 stored as bfloat16)


def shard_entry(shard: str, nbytes: int, records: Sequence[TensorRecord], md5: str) -> dict[str, Any]:
    """The entry of one shard file, whose tensors come in the order of their bytes."""
    return {
        "dataPath": shard,
        "format": "raw-shard",
        "nbytes": nbytes,
        "records": [
            {
                "name": record.name, "shape": list(record.shape), "dtype": record.dtype, "format": record.format,
                "nbytes": record.nbytes, "byteOffset": record.offset,
            }
            for record in records
        ],
        "md5sum": md5,
    }  # fmt: skip


def read_tensor_cache(text: str) -> dict[str, TensorRecord]:
    """The tensors of all shards by name."""
    return {
        record["name"]: TensorRecord(
            record["name"], tuple(record["shape"]), record["dtype"], record["byteOffset"], record["nbytes"],
            shard["dataPath"], record["format"],
        )
        for shard in json.loads(text)["records"]
        for record in shard["records"]
    }  # fmt: skip


def tensor_cache(shards: Sequence[Json], total_parameters: int) -> dict[str, Any]:
    """Join the shards' entries, in order. Bits per parameter count everything stored over the weights of the model."""
    records = [record for shard in shards for record in shard["records"]]
    nbytes = sum(record["nbytes"] for record in records)
    return {
        "metadata": {
            "ParamSize": len(records),
            "ParamBytes": nbytes,
            "BitsPerParam": nbytes * 8 / total_parameters,
        },
        "records": list(shards),
    }
