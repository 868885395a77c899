"""Weight maps: each parameter of a compiled model as slices of the checkpoint's tensors, as printable data.

An entry reads: the rows [start, stop) of each source, in this order, stacked on the first axis (``stack``, or ``copy``
when there is one source), or the one source with its two axes swapped (``transpose``). The cast to the storage dtype is
the quantization scheme's business and is not written here. Where the checkpoint is quantized, a source is a matrix that
no tensor holds as such; "stored" then names those that do (builder/formats/quantized).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import prod
from typing import TYPE_CHECKING, Any

from builder.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np

KINDS = ("embedding", "linear", "head", "norm", "bias", "router")
WEIGHT_DTYPES = ("F16", "BF16", "F32", "F64")  # safetensors names


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the compiled model; ``shape`` is (output, input) for matrices, as in transformers."""

    name: str
    shape: tuple[int, ...]
    kind: str  # one of KINDS


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows [start, stop) of a checkpoint tensor whose whole shape must be ``shape``."""

    tensor: str
    shape: tuple[int, ...]
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Entry:
    """How one parameter is filled."""

    parameter: Parameter
    op: str  # copy | stack | transpose
    sources: tuple[Slice, ...]


def whole(tensor: str, shape: tuple[int, ...]) -> Slice:
    """All rows of a tensor."""
    return Slice(tensor, shape, 0, shape[0])


def weight_map(entries: Sequence[Entry], droppable: Iterable[str], layout: Mapping[str, Any]) -> dict[str, Any]:
    """Check the entries against the checkpoint's ``layout``, both ways, and return the map as JSON.

    Args:
        entries: one per parameter, in the artifact's order.
        droppable: tensors that a checkpoint may hold and the model does not need.
        layout: {"tensors": {name: {"dtype", "shape"}}} as fetch writes it.

    Raises:
        UserError: a source tensor is missing, has another shape or a dtype that holds no weights, or nothing uses it.
    """
    tensors = layout["tensors"]
    for entry in entries:
        _check_filled(entry)
    for source in {source.tensor: source for entry in entries for source in entry.sources}.values():
        _check_source(source, tensors)
    used = {source.tensor for entry in entries for source in entry.sources}
    dropped = sorted(set(tensors) & set(droppable) - used)
    _check_extra(sorted(set(tensors) - used - set(dropped)), used)
    return {"parameters": [_entry_json(entry, tensors) for entry in entries], "dropped": dropped}


def _check_filled(entry: Entry) -> None:
    """Our own mistakes, not the user's: the slices must make up exactly the parameter's shape."""
    parameter, sources = entry.parameter, entry.sources
    assert parameter.kind in KINDS, parameter
    if entry.op == "transpose":
        assert [source.shape for source in sources] == [parameter.shape[::-1]], entry
        return
    assert entry.op == ("copy" if len(sources) == 1 else "stack"), entry
    assert sum(source.stop - source.start for source in sources) == parameter.shape[0], entry
    assert all(source.shape[1:] == parameter.shape[1:] for source in sources), entry


def _check_source(source: Slice, tensors: Mapping[str, Any]) -> None:
    if source.tensor not in tensors:
        near = get_close_matches(source.tensor, tensors, n=3)
        raise UserError(
            f"the checkpoint has no tensor {source.tensor!r} (expected with shape {list(source.shape)}); "
            f"nearest names in it: {', '.join(near) or 'none'}",
            "does config.json belong to these weights?",
        )
    found = tensors[source.tensor]
    if tuple(found["shape"]) != source.shape:
        raise UserError(
            f"tensor {source.tensor!r} has shape {found['shape']}; config.json asks for {list(source.shape)}",
            "does config.json belong to these weights?",
        )
    if found["dtype"] not in WEIGHT_DTYPES:
        raise UserError(
            f"tensor {source.tensor!r} has dtype {found['dtype']}; weights may be {', '.join(WEIGHT_DTYPES)}",
            "a checkpoint that is quantized already cannot be quantized again",
        )


def _check_extra(extra: Sequence[str], used: Iterable[str]) -> None:
    if not extra:
        return
    shown = ", ".join(repr(name) for name in extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
    near = get_close_matches(extra[0], list(used), n=1)
    raise UserError(
        f"the checkpoint has tensors that this model does not use: {shown}"
        + (f"; nearest used name: {near[0]!r}" if near else ""),
        "a bias or a layer that config.json does not mention? the model would be built wrongly without it",
    )


def _entry_json(entry: Entry, tensors: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": entry.parameter.name,
        "shape": list(entry.parameter.shape),
        "kind": entry.parameter.kind,
        "op": entry.op,
        "sources": [
            {
                "tensor": source.tensor,
                "dtype": tensors[source.tensor]["dtype"],
                "shape": list(source.shape),
                "rows": [source.start, source.stop],
            }
            for source in entry.sources
        ],
    }


def tensors_of(source: Mapping[str, Any]) -> list[str]:
    """The checkpoint's tensors that a source of a parameter is read from: several where it is quantized."""
    stored = source.get("stored")
    return [part["tensor"] for part in stored["tensors"].values()] if stored else [source["tensor"]]


def parameter_count(map_json: Mapping[str, Any]) -> int:
    """How many weights the compiled model has."""
    return sum(prod(parameter["shape"]) for parameter in map_json["parameters"])


def to_source(map_json: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of a weight map: {parameter name: array} -> {checkpoint tensor name: array}.

    A tensor that is one whole run of rows of one parameter is a view of it; one that was split is put together again.
    Dropped tensors are not made up.
    """
    import numpy as np

    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for parameter in map_json["parameters"]:
        array, row = arrays[parameter["name"]], 0
        assert list(array.shape) == parameter["shape"], (parameter["name"], array.shape, parameter["shape"])
        if parameter["op"] == "transpose":
            parts.setdefault(parameter["sources"][0]["tensor"], []).append((0, array.T))
            continue
        for source in parameter["sources"]:
            start, stop = source["rows"]
            parts.setdefault(source["tensor"], []).append((start, array[row : row + stop - start]))
            row += stop - start
    tensors: dict[str, np.ndarray] = {}
    for name, pieces in parts.items():
        ordered = [piece for _, piece in sorted(pieces, key=lambda part: part[0])]
        tensors[name] = ordered[0] if len(ordered) == 1 else np.concatenate(ordered)
    return tensors
