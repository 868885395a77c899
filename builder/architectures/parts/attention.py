"""Attention over a KV cache, with queries, keys and values in one matrix: ``qkv_proj``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from llm_build.architectures import cuts, folds, table
from llm_build.architectures.cuts import Cut
from llm_build.architectures.folds import Fold
from llm_build.architectures.table import HeadByHead, Row
from llm_build.architectures.weights import Parameter

SEPARATE = ("q_proj", "k_proj", "v_proj")


class QueryKey(Protocol):
    """What queries and keys go through before they are cached."""

    @property
    def graph(self) -> str: ...

    @property
    def needs_positions(self) -> bool: ...

    def rows(self, name: str, attention: Attention) -> Iterator[Row]: ...


@dataclass(frozen=True, slots=True)
class Attention:
    """Sizes in elements. ``bias`` is that of queries, keys and values; ``output`` the name of the matrix after
    attention. ``qkv_tensors``: the modules of the checkpoint; one module holds all rows, stacked, or (``by_head``) head
    by head: q, k and v of the first, then of the second. Scores are multiplied by ``scale``, or by head_dim^-0.5.
    ``windowed``: the layer looks through the model's window, where it has one.
    """

    hidden: int
    query_heads: int
    key_heads: int
    head_dim: int
    bias: bool = False
    output_bias: bool = False
    output: str = "o_proj"
    qkv_tensors: tuple[str, ...] = SEPARATE
    by_head: bool = False
    query_key: QueryKey | None = None
    scale: float | None = None
    windowed: bool = False

    graph: ClassVar[str] = "llm_build.models.attention:Attention"

    @property
    def query_rows(self) -> int:
        return self.query_heads * self.head_dim

    @property
    def key_rows(self) -> int:
        return self.key_heads * self.head_dim

    def operations(self) -> tuple[str, ...]:
        return (self.graph, *((self.query_key.graph,) if self.query_key else ()))

    def rows(self, name: str, fold: Fold | None) -> Iterator[Row]:
        query = cuts.query_heads(self.query_heads, self.head_dim)
        key = cuts.key_heads(self.key_heads, self.head_dim)
        qkv, output = f"{name}.qkv_proj", f"{name}.{self.output}"
        heads = cuts.rows(query, key, key)
        if self.by_head:
            yield from self._rows_by_head(name, heads, fold)
        else:
            yield from table.linear(qkv, self.hidden, self._sources(name), bias=self.bias, cut=heads, fold=fold)
        if self.query_key is not None:
            yield from self.query_key.rows(name, self)
        values = folds.values(qkv, self.query_rows, self.key_rows, self.head_dim, bias=self.bias)
        mixed = cuts.columns(query)
        hidden = [(output, self.hidden)]
        yield from table.linear(output, self.query_rows, hidden, bias=self.output_bias, cut=mixed, fold=values)

    def _sources(self, name: str) -> list[tuple[str, int]]:
        """(module of the checkpoint, its rows)."""
        rows = (self.query_rows, self.key_rows, self.key_rows)
        if len(self.qkv_tensors) == 1:
            return [(f"{name}.{self.qkv_tensors[0]}", sum(rows))]
        return [(f"{name}.{tensor}", count) for tensor, count in zip(self.qkv_tensors, rows, strict=True)]

    def _rows_by_head(self, name: str, cut: Cut, fold: Fold | None) -> Iterator[Row]:
        assert self.query_heads == self.key_heads
        (tensor,), qkv, rows = self.qkv_tensors, f"{name}.qkv_proj", 3 * self.query_rows
        weights = HeadByHead(f"{name}.{tensor}.weight", self.query_heads, self.head_dim)
        yield Row(Parameter(f"{qkv}.weight", (rows, self.hidden), "linear"), weights, cut, fold)
        if self.bias:
            biases = HeadByHead(f"{name}.{tensor}.bias", self.query_heads, self.head_dim)
            yield Row(Parameter(f"{qkv}.bias", (rows,), "bias"), biases, cut)
