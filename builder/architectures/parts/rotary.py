"""Rotary position embeddings (Su et al. 2021, arXiv:2104.09864)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from llm_build.architectures.parts.attention import Attention
from llm_build.architectures.table import Row


@dataclass(frozen=True, slots=True)
class Rotary:
    """The first ``dim`` features of a head are rotated; ``theta`` is the base of the angles, ``scaling`` stretches them
    (builder/architectures/rope.py gives its fields), ``magnitude`` multiplies sine and cosine."""

    dim: int
    theta: float
    scaling: Mapping[str, Any] | None = None
    magnitude: float = 1.0


@dataclass(frozen=True, slots=True)
class GraphRotary:
    """Rotation by the graph, of the layers that have it: for models that rotate in some layers only, as the KV cache
    rotates in all of them or in none. Whole heads; no scaling that depends on the length of the context."""

    angles: Rotary

    graph: ClassVar[str] = "llm_build.models.rotary:GraphRotary"
    needs_positions: ClassVar[bool] = True

    def rows(self, name: str, attention: Attention) -> Iterator[Row]:
        """None: it has no parameters."""
        return iter(())
