"""cut[i]: a quantized shard, dealt out: what is whole into params_shard_<i>.bin, what each rank has of the rest into a
file of its own. No value changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_build.core.digest import canonical
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.formats.parameter_table import CutTensor, cut_tensor_from_json
from llm_build.formats.slicing import take_tp_shard, tp_shard_name
from llm_build.formats.tensorcache import TensorRecord, shard_entry
from llm_build.quant.storage import NUMPY_DTYPE
from llm_build.steps.ports import one

_ALIGNMENT_BYTES = 64  # of a tensor in its file: what kernels assume of an address, so that a mapped file can be used


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Outputs: params_shard_<i>.bin, params_shard_<i>_rank_<r>.bin, and their entries for tensor-cache.json.

    Args:
        params: {"shards": ranks, "index", "tensors": [a CutTensor as formats/parameter_table.py writes it]}.
        inputs: {"shard": the quantized shard, "records": its entry}.
    """
    source, stem = one(inputs["shard"]), f"params_shard_{params['index']}"
    ranks: int = params["shards"]
    tensors = [cut_tensor_from_json(row) for row in params["tensors"]]
    shared = [tensor for tensor in tensors if tensor.slicing is None]
    split = [tensor for tensor in tensors if tensor.slicing is not None]
    if not split:
        out.link(f"{stem}.bin", source)
        entries = [json.loads(one(inputs["records"]).path.read_bytes())]
    else:
        shard_bytes = np.memmap(source.path, np.uint8, "r", source.offset, (source.nbytes,))
        entries = [_write(out.path(f"{stem}.bin"), _parts(shard_bytes, shared, None, 1))] if shared else []
        for rank in range(ranks):
            path = out.path(f"{stem}_rank_{rank}.bin")
            entries.append(_write(path, _parts(shard_bytes, split, rank, ranks)))
            out.progress(rank + 1, ranks, "ranks", stem)
    out.path("records.json").write_bytes(canonical({"shards": entries}))


def _parts(
    shard_bytes: np.ndarray, tensors: Sequence[CutTensor], rank: int | None, ranks: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, dtype, array) of what a rank has of each tensor; ``rank`` None: all of it."""
    for tensor in tensors:
        stored = shard_bytes[tensor.offset : tensor.offset + tensor.nbytes]
        if tensor.offset % NUMPY_DTYPE[tensor.dtype].itemsize:
            stored = stored.copy()
        array = stored.view(NUMPY_DTYPE[tensor.dtype]).reshape(tensor.shape)
        if rank is None:
            yield tensor.name, tensor.dtype, array
        else:
            yield tp_shard_name(tensor.name, rank), tensor.dtype, take_tp_shard(array, tensor.slicing, rank, ranks)


def _write(path: Path, parts: Iterator[tuple[str, str, np.ndarray]]) -> dict[str, Any]:
    """One file, and its entry for tensor-cache.json."""
    records, offset, hasher = [], 0, hashlib.md5(usedforsecurity=False)  # what the format asks for
    with path.open("wb") as file:
        for name, dtype, array in parts:
            gap = -offset % _ALIGNMENT_BYTES
            for data in (bytes(gap), np.ascontiguousarray(array).reshape(-1).view(np.uint8).data):
                hasher.update(data)
                file.write(data)
            offset += gap
            records.append(TensorRecord(name, array.shape, dtype, offset, array.nbytes, path.name))
            offset += array.nbytes
    return shard_entry(path.name, offset, records, hasher.hexdigest())
