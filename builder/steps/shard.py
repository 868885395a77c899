"""shard: lay the packed tensors out over shard files, and say what each quantize item has to do.

Parameters are placed in the model's order, each with its scales beside it, into the open shard while they fit. A
parameter that holds a tensor larger than a shard gets a shard of its own; one whose tensors fit alone but not together
is split over two shards (the runtime's limit is per file), and both read its source.

With rules, a parameter takes the room that it would have unpacked, whatever packs it: so another rule changes the bytes
of the shards that hold its parameters, and moves nothing from one shard to another. Shards are then smaller than the
limit. (Only a tensor that is larger than a shard when unpacked, and is split when packed, can change their number.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from llm_build.architectures.folds import Fold
from llm_build.architectures.weights import Entry, entry_json, parameter_count, read_map
from llm_build.core.digest import canonical
from llm_build.core.errors import UserError
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.formats.parameter_table import TensorLocation, parameter_table
from llm_build.quant.layout import DTYPE_BYTES, Scheme, StoredTensor, parse_scheme, stored_tensors
from llm_build.quant.placement import PlacedTensor, placed_to_json
from llm_build.steps.ports import one


@dataclass(slots=True)
class Shard:
    """An open shard: (parameter's weight map entry, tensor, byte offset) in the order of the file."""

    tensors: list[tuple[Entry, StoredTensor, int]] = field(default_factory=list)
    nbytes: int = 0
    room: int = 0  # bytes that count against the limit

    def place(self, entry: Entry, stored: list[StoredTensor], room: int) -> None:
        self.room += room
        for tensor in stored:
            self.tensors.append((entry, tensor, self.nbytes))
            self.nbytes += tensor.nbytes


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """``params``: {"scheme", "max_shard_bytes", "moments", "scales": whether items read what calibrate or
    scales wrote};
    ``inputs``: {"weight_map"}; output: shards.json, parameters.json."""
    weight_map = read_map(json.loads(one(inputs["weight_map"]).path.read_bytes()))
    quantization = parse_scheme(params["scheme"])
    shards = lay_out(weight_map.entries, quantization, params["max_shard_bytes"])
    folds = weight_map.folds if params["scales"] else ()
    items = [_item(index, shard, quantization, params["moments"], folds) for index, shard in enumerate(shards)]
    out.path("shards.json").write_bytes(canonical({"items": items}))
    table = parameter_table(_locations(shards), parameter_count(weight_map.entries))
    out.path("parameters.json").write_bytes(canonical(table))
    out.fact("shards", len(shards))
    out.fact("bytes", sum(shard.nbytes for shard in shards))


def lay_out(entries: Sequence[Entry], quantization: Scheme, max_shard_bytes: int) -> list[Shard]:
    """Greedy, in order; every tensor in exactly one shard."""
    if max_shard_bytes < 1:
        raise UserError(f"max_shard_bytes: found {max_shard_bytes}; allowed: at least 1")
    shards = [Shard()]
    for entry in entries:
        stored = stored_tensors(entry.parameter, quantization)
        together = sum(tensor.nbytes for tensor in stored)
        apart = together > max_shard_bytes and all(tensor.nbytes <= max_shard_bytes for tensor in stored)
        for group in [[tensor] for tensor in stored] if apart else [stored]:
            room = sum(tensor.nbytes for tensor in group)
            if quantization.rules:
                room = max(room, prod(entry.parameter.shape) * DTYPE_BYTES[quantization.dtype])
            if shards[-1].tensors and shards[-1].room + room > max_shard_bytes:
                shards.append(Shard())
            shards[-1].place(entry, group, room)
    return shards


def _item(index: int, shard: Shard, quantization: Scheme, moments: bool, folds: Sequence[Fold]) -> dict[str, Any]:
    jobs: dict[str, dict[str, Any]] = {}
    for entry, tensor, offset in shard.tensors:
        scheme = packing_of(quantization.for_parameter(entry.name))
        job = jobs.setdefault(entry.name, {**entry_json(entry), "scheme": scheme, "tensors": []})
        job["tensors"].append(placed_to_json(PlacedTensor(tensor, offset)))
    tensors = sorted({name for entry, _, _ in shard.tensors for source in entry.sources for name in source.tensors})
    return {
        "name": str(index),
        "params": {"index": index, "parameters": list(jobs.values()), "nbytes": shard.nbytes},
        "inputs": {tensor: ["tensors", f"tensor/{tensor}"] for tensor in tensors}
        | {moment: ["moments", moment] for moment in (_moments(jobs) if moments else ())}
        | {scale: ["scales", scale] for scale in _scales(jobs, folds)},
    }


def _moments(jobs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The outputs of calibrate that belong to the packed matrices among these parameters."""
    return sorted(
        f"moments/{name}"
        for name, job in jobs.items()
        if job["kind"] in ("linear", "head") and any(tensor["role"] != "plain" for tensor in job["tensors"])
    )


def _scales(jobs: Mapping[str, Any], folds: Sequence[Fold]) -> list[str]:
    """The outputs of scales that belong to these parameters."""
    columns = {f"columns/{name}" for fold in folds for name in fold.readers if name in jobs}
    return sorted(columns | {f"rows/{name}" for fold in folds for name in fold.writers if name in jobs})


def packing_of(quantization: Scheme) -> dict[str, Any]:
    """The format alone: what it is called, who else follows rules, and what inputs are rounded to, change no byte."""
    return {**asdict(quantization), "name": "", "rules": [], "activation": "", "activation_scale": ""}


def _locations(shards: list[Shard]) -> list[TensorLocation]:
    return [
        TensorLocation(tensor.name, tensor.shape, tensor.dtype, index, offset, tensor.nbytes)
        for index, shard in enumerate(shards)
        for _, tensor, offset in shard.tensors
    ]
