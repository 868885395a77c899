"""The one table of a family's parameters: what each is filled with, how ranks divide it, what may be folded into it.

A row is stated by a part of the model (builder/architectures/parts). What others ask for is read off the rows: the
parameters, the weight map, the cuts and the folds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from llm_build.architectures.cuts import Cut
from llm_build.architectures.folds import Fold
from llm_build.architectures.weights import Entry, Parameter, Slice, whole


@dataclass(frozen=True, slots=True)
class Stack:
    """Whole tensors of the checkpoint, given as (name, rows), one under the other."""

    tensors: Sequence[tuple[str, int]]

    def entry(self, parameter: Parameter) -> Entry:
        slices = tuple(whole(name, (rows, *parameter.shape[1:])) for name, rows in self.tensors)
        return Entry(parameter, "copy" if len(slices) == 1 else "stack", slices)


@dataclass(frozen=True, slots=True)
class HeadByHead:
    """One tensor, whose rows are q, k and v of the first head, then of the second; ``width`` rows of each."""

    tensor: str
    heads: int
    width: int

    def entry(self, parameter: Parameter) -> Entry:
        starts = [(3 * head + part) * self.width for part in range(3) for head in range(self.heads)]
        slices = tuple(Slice(self.tensor, parameter.shape, start, start + self.width) for start in starts)
        return Entry(parameter, "stack", slices)


@dataclass(frozen=True, slots=True)
class Row:
    """One parameter. ``cut``: how ranks divide its matrix (None: each has it whole). ``fold``: where the scales of its
    input channels may go, the readers left out (None: nowhere)."""

    parameter: Parameter
    source: Stack | HeadByHead
    cut: Cut | None = None
    fold: Fold | None = None


def vector(name: str, width: int, kind: str = "norm", cut: Cut | None = None) -> Row:
    """A vector (width,) under its own name."""
    return Row(Parameter(name, (width,), kind), Stack(((name, width),)), cut)


def matrix(name: str, shape: tuple[int, int], kind: str, cut: Cut | None = None, fold: Fold | None = None) -> Row:
    """A matrix (output, input) under its own name."""
    return Row(Parameter(name, shape, kind), Stack(((name, shape[0]),)), cut, fold)


def linear(
    name: str,
    inputs: int,
    sources: Sequence[tuple[str, int]],
    *,
    bias: bool = False,
    cut: Cut | None = None,
    fold: Fold | None = None,
) -> Iterator[Row]:
    """A matrix and perhaps its bias; ``sources`` are (module, outputs), stacked on the output axis."""
    outputs = sum(rows for _, rows in sources)
    weights = Stack([(f"{module}.weight", rows) for module, rows in sources])
    yield Row(Parameter(f"{name}.weight", (outputs, inputs), "linear"), weights, cut, fold)
    if bias:
        biases = Stack([(f"{module}.bias", rows) for module, rows in sources])
        yield Row(Parameter(f"{name}.bias", (outputs,), "bias"), biases, cut)


def entries_of(rows: Iterable[Row]) -> list[Entry]:
    """How each parameter is filled."""
    return [row.source.entry(row.parameter) for row in rows]


def cuts_of(rows: Iterable[Row]) -> dict[str, Cut]:
    """What tensor parallelism cuts, by module."""
    return {row.parameter.name.rpartition(".")[0]: row.cut for row in rows if row.cut is not None}


def folds_of(rows: Iterable[Row]) -> Iterator[Fold]:
    """Where input channels may be scaled: one fold for all that reads the same channels."""
    readers: dict[Fold, list[str]] = {}
    for row in rows:
        if row.fold is not None:
            readers.setdefault(row.fold, []).append(row.parameter.name)
    for fold, names in readers.items():
        yield replace(fold, readers=tuple(names))
