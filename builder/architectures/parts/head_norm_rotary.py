"""Norms over each head of queries and keys, and their rotation, in one operation of the graph."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from llm_build.architectures import table
from llm_build.architectures.parts.attention import Attention
from llm_build.architectures.table import Row


@dataclass(frozen=True, slots=True)
class HeadNormRotary:
    """RMS norms whose weights are stored less one; then frequencies ``theta``^(-2i / D) / ``factor``, in radians per
    token. The cache rotates nothing."""

    eps: float
    theta: float
    factor: float = 1.0

    graph: ClassVar[str] = "llm_build.models.head_norm_rotary:HeadNormRotary"
    needs_positions: ClassVar[bool] = True

    def rows(self, name: str, attention: Attention) -> Iterator[Row]:
        yield table.vector(f"{name}.q_norm.weight", attention.head_dim)
        yield table.vector(f"{name}.k_norm.weight", attention.head_dim)
