"""Rotation of queries and keys by the graph, for models that rotate in some of their layers: the cache then rotates
nothing. Axes: M rows (tokens), A attention heads, D features of a head."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te, tirx
from tvm.relax.frontend import nn

from llm_build.ops import emit as op

COMPUTE = "float32"


@dataclass(frozen=True, slots=True)
class RotaryLabel(op.Label):
    """``inv_freq``: radians per token, of each of the D / 2 pairs."""

    op: ClassVar[str] = "rotary"

    query_heads: int
    key_heads: int
    inv_freq: tuple[float, ...]


def _rotary(label: RotaryLabel, qkv_MAD: Any, positions_M: Any) -> Any:
    """Feature d of the first half of a head turns with feature d + D / 2 (Su et al. 2021, arXiv:2104.09864)."""
    half, rotated = len(label.inv_freq), label.query_heads + label.key_heads

    def frequency(pair: Any) -> Any:
        value = tirx.const(label.inv_freq[-1], COMPUTE)
        for index, other in enumerate(label.inv_freq[:-1]):
            value = tirx.if_then_else(tirx.EQ(pair, index), tirx.const(other, COMPUTE), value)
        return value

    def turned(m: Any, a: Any, d: Any) -> Any:
        angle = tirx.Cast(COMPUTE, positions_M[m]) * frequency(d % half)
        other = qkv_MAD[m, a, (d + half) % (2 * half)]
        value = qkv_MAD[m, a, d] * tirx.cos(angle) + tirx.if_then_else(d < half, -other, other) * tirx.sin(angle)
        return tirx.if_then_else(a < rotated, value, qkv_MAD[m, a, d])

    return te.compute(qkv_MAD.shape, turned, "turned")


def rotary(
    qkv_MAD: nn.Tensor, positions_M: nn.Tensor, query_heads: int, key_heads: int, inv_freq: Sequence[float]
) -> nn.Tensor:
    """Queries and keys of fused heads (M, query + 2 * key heads, D) rotated to their positions (M,) int32; values as
    they are. ``inv_freq``: radians per token, of each of the D / 2 pairs."""
    assert 2 * len(inv_freq) == int(qkv_MAD.shape[2])
    label = RotaryLabel(query_heads, key_heads, tuple(inv_freq))
    return op.emit(label, _rotary, [qkv_MAD, positions_M], [], qkv_MAD.shape)
