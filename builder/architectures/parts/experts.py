"""Mixtures of experts in place of an MLP. All experts of a layer are one matrix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llm_build.architectures import cuts, folds, table
from llm_build.architectures.cuts import Part
from llm_build.architectures.folds import Fold
from llm_build.architectures.table import Row


@dataclass(frozen=True, slots=True)
class Experts:
    """Each token goes to ``top`` of ``count`` gated SiLU MLPs of ``inner`` features, whose shares are a softmax over
    all experts, or (``normalized``) over the chosen ones. ``gates`` and ``down`` name an expert's tensors;
    ``inner_name`` is what the family's Config calls ``inner``."""

    hidden: int
    inner: int
    count: int
    top: int
    normalized: bool = True
    gates: tuple[str, str] = ("gate_proj", "up_proj")
    down: str = "down_proj"
    inner_name: str = "intermediate_size"

    graph: ClassVar[str] = "llm_build.models.experts:Experts"

    def operations(self) -> tuple[str, ...]:
        return (self.graph,)

    def rows(self, name: str, fold: Fold | None) -> Iterator[Row]:
        part = Part(self.inner_name, self.inner)
        gate_up, down = f"{name}.gate_up_proj", f"{name}.down_proj"
        experts = [f"{name}.experts.{index}" for index in range(self.count)]
        yield table.matrix(f"{name}.gate.weight", (self.count, self.hidden), "router", fold=fold)
        sources = [(f"{expert}.{gate}", self.inner) for expert in experts for gate in self.gates]
        halves = cuts.rows(part, part, blocks=self.count)
        yield from table.linear(gate_up, self.hidden, sources, cut=halves, fold=fold)
        ups = folds.gated(gate_up, self.inner, blocks=self.count)
        outputs = [(f"{expert}.{self.down}", self.hidden) for expert in experts]
        yield from table.linear(down, self.inner, outputs, cut=cuts.columns(part), fold=ups)
