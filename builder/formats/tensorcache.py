"""tensor-cache.json: where each stored tensor lies; older readers call the same content ndarray-cache.json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llm_build.core.errors import UserError
from llm_build.core.json_text import parse_json
from llm_build.core.names import is_plain
from llm_build.core.step_io import Json


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


def read_tensor_cache(text: str | bytes, name: str = "tensor-cache.json") -> dict[str, TensorRecord]:
    """The tensors of all shards by name; ``name`` is what messages call the file. UserError for what is no such
    index, and for one that speaks of files outside its folder."""
    try:
        records = [_record(shard, each) for shard in parse_json(text)["records"] for each in shard["records"]]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error!s:.200}"
        raise UserError(f"{name}: no index of tensors: {why}", "build it again") from error
    return {record.name: record for record in records}


def _record(shard: Json, fields: Json) -> TensorRecord:
    record = TensorRecord(
        fields["name"], tuple(fields["shape"]), fields["dtype"], fields["byteOffset"], fields["nbytes"],
        shard["dataPath"], fields.get("format", "raw"),
    )  # fmt: skip
    numbers = (*record.shape, record.offset, record.nbytes)
    if any(type(number) is not int or number < 0 for number in numbers):
        raise TypeError(f"tensor {record.name!r}: a size or an offset is no whole number")
    if not all(isinstance(text, str) for text in (record.name, record.dtype, record.format)):
        raise TypeError(f"tensor {record.name!r}: its name, dtype or format is no string")
    if not is_plain(record.shard):
        raise ValueError(f"tensor {record.name!r} is said to be in {record.shard!r}, outside the folder")
    return record


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
