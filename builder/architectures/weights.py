"""Weight maps: each parameter of a compiled model as slices of the checkpoint's tensors, as printable data.

An entry reads: the rows [start, stop) of each source, in this order, stacked on the first axis (``stack``, or ``copy``
when there is one source), or the one source with its two axes swapped (``transpose``). The cast to the storage dtype is
the quantization scheme's business and is not written here. Where the checkpoint is quantized, a source is a matrix that
no tensor holds as such; ``stored`` then names those that do (builder/formats/quantized).

weight_map.json is written by ``map_json`` and read by ``read_map``; an entry inside other JSON by ``entry_json`` and
``read_entry``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

from llm_build.architectures.folds import Fold
from llm_build.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np

KINDS = ("embedding", "linear", "head", "norm", "bias", "router")
_MANY_NAMES, _LONG_NAME = 10_000, 200
WEIGHT_DTYPES = ("F16", "BF16", "F32", "F64")  # safetensors names


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of the compiled model; ``shape`` is (output, input) for matrices, as in transformers."""

    name: str
    shape: tuple[int, ...]
    kind: str  # one of KINDS


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows [start, stop) of a checkpoint tensor whose whole shape must be ``shape``. ``dtype``: its safetensors name,
    as soon as the checkpoint is known. ``stored``, of a quantized one: {"packing", "tensors": {role: {"tensor",
    "dtype", "shape"}}}."""

    tensor: str
    shape: tuple[int, ...]
    start: int
    stop: int
    dtype: str = ""
    stored: Mapping[str, Any] | None = None

    @property
    def tensors(self) -> list[str]:
        """The checkpoint's tensors that are read: several where it is quantized."""
        return [part["tensor"] for part in self.stored["tensors"].values()] if self.stored else [self.tensor]


@dataclass(frozen=True, slots=True)
class Entry:
    """How one parameter is filled."""

    parameter: Parameter
    op: str  # copy | stack | transpose
    sources: tuple[Slice, ...]

    @property
    def name(self) -> str:
        return self.parameter.name

    @property
    def is_stored(self) -> bool:
        """Whether the checkpoint holds it quantized."""
        return any(source.stored for source in self.sources)


@dataclass(frozen=True, slots=True)
class WeightMap:
    """``entries`` in the artifact's order; ``dropped``: tensors of the checkpoint that the model does not need;
    ``folds``: where input channels may be scaled."""

    entries: tuple[Entry, ...]
    dropped: tuple[str, ...]
    folds: tuple[Fold, ...] = ()


def whole(tensor: str, shape: tuple[int, ...]) -> Slice:
    """All rows of a tensor."""
    return Slice(tensor, shape, 0, shape[0])


def weight_map(entries: Sequence[Entry], droppable: Iterable[str], layout: Mapping[str, Any]) -> WeightMap:
    """Check the entries against the checkpoint's ``layout``, both ways, and return the map.

    Args:
        entries: one per parameter, in the artifact's order.
        droppable: tensors that a checkpoint may hold and the model does not need.
        layout: {"tensors": {name: {"dtype", "shape"}}} as fetch writes it; {"droppable"}: more of those.

    Raises:
        UserError: a source tensor is missing, has another shape or a dtype that holds no weights, or nothing uses it.
    """
    tensors = layout["tensors"]
    for entry in entries:
        _check_filled(entry)
    for source in {source.tensor: source for entry in entries for source in entry.sources}.values():
        _check_source(source, tensors)
    used = {source.tensor for entry in entries for source in entry.sources}
    dropped = sorted(set(tensors) & {*droppable, *layout.get("droppable", ())} - used)
    _check_extra(sorted(set(tensors) - used - set(dropped)), used)
    return WeightMap(tuple(_with_dtypes(entry, tensors) for entry in entries), tuple(dropped))


def _with_dtypes(entry: Entry, tensors: Mapping[str, Any]) -> Entry:
    return replace(entry, sources=tuple(replace(s, dtype=tensors[s.tensor]["dtype"]) for s in entry.sources))


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
        near = get_close_matches(source.tensor, _some(tensors), n=3)
        raise UserError(
            f"the checkpoint has no tensor {source.tensor!r} (expected with shape {list(source.shape)}); "
            f"nearest names in it: {', '.join(near) or 'none'}",
            "does config.json belong to these weights?",
        )
    tensor = tensors[source.tensor]
    if tuple(tensor["shape"]) != source.shape:
        raise UserError(
            f"tensor {source.tensor!r} has shape {tensor['shape']}; config.json asks for {list(source.shape)}",
            "does config.json belong to these weights?",
        )
    if tensor["dtype"] not in WEIGHT_DTYPES:
        raise UserError(
            f"tensor {source.tensor!r} has dtype {tensor['dtype']}; weights may be {', '.join(WEIGHT_DTYPES)}",
            "a checkpoint that is quantized already cannot be quantized again",
        )


def _some(names: Iterable[str]) -> list[str]:
    """So many that the nearest one is found at once."""
    return list(islice((name for name in names if len(name) <= _LONG_NAME), _MANY_NAMES))


def _check_extra(extra: Sequence[str], used: Iterable[str]) -> None:
    if not extra:
        return
    shown = ", ".join(repr(name) for name in extra[:5]) + (f" and {len(extra) - 5} more" if len(extra) > 5 else "")
    near = get_close_matches(extra[0][:_LONG_NAME], _some(used), n=1)
    raise UserError(
        f"the checkpoint has tensors that this model does not use: {shown}"
        + (f"; nearest used name: {near[0]!r}" if near else ""),
        "a bias or a layer that config.json does not mention? the model would be built wrongly without it",
    )


def map_json(weight_map: WeightMap) -> dict[str, Any]:
    """The content of weight_map.json."""
    return {
        "parameters": [entry_json(entry) for entry in weight_map.entries],
        "dropped": list(weight_map.dropped),
        "folds": [asdict(fold) for fold in weight_map.folds],
    }


def read_map(data: Mapping[str, Any]) -> WeightMap:
    """The inverse of ``map_json``."""
    entries = tuple(read_entry(entry) for entry in data["parameters"])
    folds = ({**fold, "readers": tuple(fold["readers"]), "writers": tuple(fold["writers"])} for fold in data["folds"])
    return WeightMap(entries, tuple(data["dropped"]), tuple(Fold(**fold) for fold in folds))


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry as weight_map.json and the jobs of quantize have it."""
    parameter = entry.parameter
    sources = [_source_json(source) for source in entry.sources]
    whole_of = {"name": parameter.name, "shape": list(parameter.shape), "kind": parameter.kind}
    return {**whole_of, "op": entry.op, "sources": sources}


def _source_json(source: Slice) -> dict[str, Any]:
    rows = {"dtype": source.dtype, "shape": list(source.shape), "rows": [source.start, source.stop]}
    return {"tensor": source.tensor, **rows, **({"stored": source.stored} if source.stored else {})}


def read_entry(data: Mapping[str, Any]) -> Entry:
    """The inverse of ``entry_json``."""
    parameter = Parameter(data["name"], tuple(data["shape"]), data["kind"])
    sources = (
        Slice(s["tensor"], tuple(s["shape"]), s["rows"][0], s["rows"][1], s["dtype"], s.get("stored"))
        for s in data["sources"]
    )
    return Entry(parameter, data["op"], tuple(sources))


def parameter_count(entries: Iterable[Entry]) -> int:
    """How many weights the compiled model has."""
    return sum(prod(entry.parameter.shape) for entry in entries)


def to_source(entries: Iterable[Entry], arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of a weight map: {parameter name: array} -> {checkpoint tensor name: array}.

    A tensor that is one whole run of rows of one parameter is a view of it; one that was split is put together again.
    Dropped tensors are not made up.
    """
    import numpy as np

    parts: dict[str, list[tuple[int, np.ndarray]]] = {}
    for entry in entries:
        array, row = arrays[entry.name], 0
        assert array.shape == entry.parameter.shape, (entry.parameter, array.shape)
        for source in entry.sources:
            if entry.op == "transpose":
                parts.setdefault(source.tensor, []).append((0, array.T))
                continue
            count = source.stop - source.start
            parts.setdefault(source.tensor, []).append((source.start, array[row : row + count]))
            row += count
    tensors: dict[str, np.ndarray] = {}
    for name, pieces in parts.items():
        ordered = [piece for _, piece in sorted(pieces, key=lambda part: part[0])]
        tensors[name] = ordered[0] if len(ordered) == 1 else np.concatenate(ordered)
    return tensors
