"""Two-layer and gated MLPs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llm_build.architectures import cuts, folds, table
from llm_build.architectures.cuts import Part
from llm_build.architectures.folds import Fold
from llm_build.architectures.table import Row

SILU = "llm_build.ops.gates:silu_mul"
GELU_TANH = "llm_build.ops.gates:gelu_mul"
GATES = ("gate_proj", "up_proj")


@dataclass(frozen=True, slots=True)
class GatedMLP:
    """down(activation(gate) * up), with gate and up in one matrix, ``gate_up_proj``. ``activation`` is an operation
    as "module:name"; ``tensors`` are the modules of the checkpoint that hold gate and up, or both."""

    hidden: int
    inner: int
    activation: str = SILU
    bias: bool = False
    tensors: tuple[str, ...] = GATES

    graph: ClassVar[str] = "llm_build.models.gated_mlp:GatedMLP"

    def operations(self) -> tuple[str, ...]:
        return (self.graph, self.activation)

    def rows(self, name: str, fold: Fold | None) -> Iterator[Row]:
        part = Part("intermediate_size", self.inner)
        gate_up, down = f"{name}.gate_up_proj", f"{name}.down_proj"
        sources = [(f"{name}.{tensor}", 2 * self.inner // len(self.tensors)) for tensor in self.tensors]
        halves = cuts.rows(part, part)
        yield from table.linear(gate_up, self.hidden, sources, bias=self.bias, cut=halves, fold=fold)
        ups = folds.gated(gate_up, self.inner, bias=self.bias)
        outputs = [(down, self.hidden)]
        yield from table.linear(down, self.inner, outputs, bias=self.bias, cut=cuts.columns(part), fold=ups)


@dataclass(frozen=True, slots=True)
class MLP:
    """down(gelu(up)), both with biases. ``activation``: gelu, or gelu_tanh. A nonlinearity stands between the two, so
    the second has no fold."""

    hidden: int
    inner: int
    activation: str
    up: str
    down: str

    graph: ClassVar[str] = "llm_build.models.mlp:MLP"

    def operations(self) -> tuple[str, ...]:
        return (self.graph,)

    def rows(self, name: str, fold: Fold | None) -> Iterator[Row]:
        part = Part("intermediate_size", self.inner)
        up, down = f"{name}.{self.up}", f"{name}.{self.down}"
        yield from table.linear(up, self.hidden, [(up, self.inner)], bias=True, cut=cuts.rows(part), fold=fold)
        yield from table.linear(down, self.inner, [(down, self.hidden)], bias=True, cut=cuts.columns(part))
