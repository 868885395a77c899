"""Norms over the last axis."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llm_build.architectures import folds, table
from llm_build.architectures.folds import Fold
from llm_build.architectures.table import Row


@dataclass(frozen=True, slots=True)
class Norm:
    """``width`` features; ``eps`` goes to the mean square. ``offset`` is added to the weight before it multiplies."""

    graph: str
    width: int
    eps: float
    bias: bool = False
    offset: float = 0.0

    def operations(self) -> tuple[str, ...]:
        return (self.graph,)

    def rows(self, name: str, fold: Fold | None = None) -> Iterator[Row]:
        """``fold`` is not used: what a norm reads is a sum."""
        yield table.vector(f"{name}.weight", self.width)
        if self.bias:
            yield table.vector(f"{name}.bias", self.width, "bias")

    def fold(self, name: str) -> Fold:
        """For what reads the norm."""
        return folds.norm(name, self.width, bias=self.bias, offset=self.offset)


def rms_norm(width: int, eps: float) -> Norm:
    return Norm("llm_build.ops.norms:RMSNorm", width, eps)


def layer_norm(width: int, eps: float) -> Norm:
    return Norm("llm_build.ops.norms:LayerNorm", width, eps, bias=True)


def gemma_norm(width: int, eps: float) -> Norm:
    """An RMS norm whose weight is stored less one."""
    return Norm("llm_build.ops.gemma:Norm", width, eps, offset=1.0)
