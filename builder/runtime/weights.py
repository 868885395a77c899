"""Parameters of an artifact as TVM tensors, mapped from the shard files, not read."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_build.core.errors import UserError
from llm_build.core.small_file import read_small
from llm_build.formats.slicing import Slicing, slicing_from_json, take_tp_shard, tp_shard_name
from llm_build.formats.tensorcache import TensorRecord, read_tensor_cache
from llm_build.targets.tvm_import import import_tvm

_ALIGNMENT_BYTES = 64  # what compiled kernels assume of a tensor's address
_INDEX_NAMES = ("tensor-cache.json", "ndarray-cache.json")


def read_index(files: Mapping[str, Path]) -> dict[str, TensorRecord]:
    """The tensors of an artifact by name."""
    index = next((files[name] for name in _INDEX_NAMES if name in files), None)
    if index is None:
        raise UserError(
            f"the artifact has no {_INDEX_NAMES[0]}; it has: {', '.join(sorted(files)) or 'nothing'}", "build"
        )
    try:
        return read_tensor_cache(read_small(index), str(index))
    except OSError as error:
        raise UserError(f"{index}: cannot be read: {error.strerror}", "build it again") from error


def load_weights(
    files: Mapping[str, Path], params: Sequence[Mapping[str, Any]], rank: int = 0, ranks: int = 1
) -> list[Any]:
    """The library's parameters in its order, as one of ``ranks`` ranks has them.

    Args:
        params: the "params" of the library's metadata; with several ranks, "shape" is what each has, and "cut" tells
            how it comes from the whole tensor (formats/slicing.py), null where it is the whole tensor.

    Raises:
        UserError: a tensor or a shard is missing, too short, or not what the library was compiled for.
    """
    tensors, mapped = read_index(files), {}
    loaded = []
    for parameter in params:
        cut = slicing_from_json(parameter["cut"]) if ranks > 1 else None
        stored, cut = _locate(tensors, parameter["name"], cut, rank)
        shape = parameter["preprocs"][0]["in_shape"] if cut else parameter["shape"]
        if list(stored.shape) != list(shape) or stored.dtype != parameter["dtype"]:
            raise UserError(
                f"parameter {parameter['name']!r} is {stored.dtype} {list(stored.shape)} in the weights, "
                f"and the library was compiled for {parameter['dtype']} {list(shape)}",
                "library and weights are of different builds: build",
            )
        if stored.shard not in mapped:
            mapped[stored.shard] = _map_file(files, stored.shard)
        array = take_tp_shard(_as_array(mapped[stored.shard], stored, parameter["name"]), cut, rank, ranks)
        loaded.append(_tensor(array, stored.dtype))
    return loaded


def _locate(
    tensors: Mapping[str, TensorRecord], name: str, cut: Slicing | None, rank: int
) -> tuple[TensorRecord, Slicing | None]:
    """Where a rank reads a parameter, and the cut that is still to be made of it: none in files of its own."""
    if cut is not None and tp_shard_name(name, rank) in tensors:
        return tensors[tp_shard_name(name, rank)], None
    if name in tensors:
        return tensors[name], cut
    if cut is not None and tp_shard_name(name, 0) in tensors:
        raise UserError(
            f"the weights are cut for fewer than {rank + 1} ranks: they have no {tp_shard_name(name, rank)!r}",
            "library and weights are of different builds: build",
        )
    raise UserError(f"the library needs the parameter {name!r}, which the artifact's weights do not have", "build")


def _map_file(files: Mapping[str, Path], name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
    if name not in files:
        raise UserError(f"the artifact has no {name}, which its tensor-cache.json names", "build")
    with files[name].open("rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)


def _as_array(shard: np.ndarray[Any, np.dtype[np.uint8]], stored: TensorRecord, name: str) -> np.ndarray[Any, Any]:
    """A stored tensor over the mapped bytes; one that is not raw is copied. bfloat16 comes as uint16."""
    if stored.offset + stored.nbytes > shard.size:
        raise UserError(
            f"{stored.shard} has {shard.size} bytes; {name} should end at byte {stored.offset + stored.nbytes}",
            "the file is cut short: build",
        )
    part = shard[stored.offset : stored.offset + stored.nbytes]
    if stored.format == "f32-to-bf16" and stored.dtype == "float32":
        return (part.view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(stored.shape)
    dtype = np.dtype("uint16" if stored.dtype == "bfloat16" else stored.dtype)
    return (part if part.ctypes.data % dtype.itemsize == 0 else part.copy()).view(dtype).reshape(stored.shape)


def _tensor(array: np.ndarray[Any, Any], dtype: str) -> Any:
    """A TVM tensor over an array; one that is not aligned, or not in one piece, is copied."""
    runtime = import_tvm(runtime_only=True).runtime
    array = np.ascontiguousarray(array)
    tensor = runtime.from_dlpack(array) if array.ctypes.data % _ALIGNMENT_BYTES == 0 else runtime.tensor(array)
    return tensor if dtype == tensor.dtype else tensor._create_view(array.shape, dtype)
