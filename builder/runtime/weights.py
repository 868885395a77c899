"""Parameters of an artifact as TVM tensors, mapped from the shard files, not read."""

from __future__ import annotations

import json
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from builder.core.errors import UserError
from builder.targets.tvm_import import import_tvm

ALIGNMENT_BYTES = 64  # what compiled kernels assume of a tensor's address
INDEX_NAMES = ("tensor-cache.json", "ndarray-cache.json")


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a tensor is: a shard file and its bytes there."""

    shard: str
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: str
    format: str  # raw | f32-to-bf16 (float32 stored as bfloat16)


def read_index(files: Mapping[str, Path]) -> dict[str, Stored]:
    """The tensors of an artifact by name."""
    index = next((files[name] for name in INDEX_NAMES if name in files), None)
    if index is None:
        raise UserError(
            f"the artifact has no {INDEX_NAMES[0]}; it has: {', '.join(sorted(files)) or 'nothing'}", "build"
        )
    tensors = {}
    for shard in json.loads(index.read_text())["records"]:
        for record in shard["records"]:
            tensors[record["name"]] = Stored(
                shard["dataPath"],
                record["byteOffset"],
                record["nbytes"],
                tuple(record["shape"]),
                record["dtype"],
                record["format"],
            )
    return tensors


def load(files: Mapping[str, Path], wanted: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The library's parameters in its order (``wanted``: the "params" of its metadata).

    Raises:
        UserError: a tensor or a shard is missing, too short, or not what the library was compiled for.
    """
    tensors, shards = read_index(files), {}
    loaded = []
    for parameter in wanted:
        name = parameter["name"]
        if name not in tensors:
            raise UserError(
                f"the library needs the parameter {name!r}, which the artifact's weights do not have", "build"
            )
        stored = tensors[name]
        if list(stored.shape) != list(parameter["shape"]) or stored.dtype != parameter["dtype"]:
            raise UserError(
                f"parameter {name!r} is {stored.dtype} {list(stored.shape)} in the weights, "
                f"and the library was compiled for {parameter['dtype']} {parameter['shape']}",
                "library and weights are of different builds: build",
            )
        if stored.shard not in shards:
            shards[stored.shard] = map_file(files, stored.shard)
        loaded.append(tensor(shards[stored.shard], stored, name))
    return loaded


def map_file(files: Mapping[str, Path], name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if name not in files:
        raise UserError(f"the artifact has no {name}, which its tensor-cache.json names", "build")
    with files[name].open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)


def tensor(shard: np.ndarray[Any, np.dtype[np.uint8]], stored: Stored, name: str) -> Any:
    """A TVM tensor over the mapped bytes; one that is not aligned, or not raw, is copied."""
    if stored.offset + stored.nbytes > shard.size:
        raise UserError(
            f"{stored.shard} has {shard.size} bytes; {name} should end at byte {stored.offset + stored.nbytes}",
            "the file is cut short: build",
        )
    part = shard[stored.offset : stored.offset + stored.nbytes]
    if stored.format == "f32-to-bf16" and stored.dtype == "float32":
        array = (part.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        aligned = part.ctypes.data % ALIGNMENT_BYTES == 0
        held = "uint16" if stored.dtype == "bfloat16" else stored.dtype
        array = (part if aligned else part.copy()).view(np.dtype(held))
    runtime = import_tvm(runtime_only=True).runtime
    array = array.reshape(stored.shape)
    made = runtime.from_dlpack(array) if array.ctypes.data % ALIGNMENT_BYTES == 0 else runtime.tensor(array)
    return made if stored.dtype == made.dtype else made._create_view(array.shape, stored.dtype)
