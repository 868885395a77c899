"""What queries and keys go through before they are cached: norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llm_build.architectures import cuts, table
from llm_build.architectures.parts.attention import Attention
from llm_build.architectures.table import Row


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """An RMS norm over each head of queries, and one over each head of keys."""

    eps: float

    graph: ClassVar[str] = "llm_build.models.query_key:HeadNorms"
    needs_positions: ClassVar[bool] = False

    def rows(self, name: str, attention: Attention) -> Iterator[Row]:
        yield table.vector(f"{name}.q_norm.weight", attention.head_dim)
        yield table.vector(f"{name}.k_norm.weight", attention.head_dim)


@dataclass(frozen=True, slots=True)
class WholeNorms:
    """An RMS norm over all heads of queries, and one over all heads of keys."""

    eps: float

    graph: ClassVar[str] = "llm_build.models.query_key:WholeNorms"
    needs_positions: ClassVar[bool] = False

    def rows(self, name: str, attention: Attention) -> Iterator[Row]:
        query = cuts.query_heads(attention.query_heads, attention.head_dim)
        key = cuts.key_heads(attention.key_heads, attention.head_dim)
        yield table.vector(f"{name}.q_norm.weight", attention.query_rows, cut=cuts.rows(query))
        yield table.vector(f"{name}.k_norm.weight", attention.key_rows, cut=cuts.rows(key))
