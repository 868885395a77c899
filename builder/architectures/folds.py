"""Where a model lets an input channel be scaled: multiplied by s in what reads it, divided by s in what makes it.

Every family states its folds as data, beside its weight map. A matrix that no fold names is never scaled: its input
comes from a sum (the residual stream) or through a nonlinearity, or it is the embedding as well. Why a fold is exact:

- ``norm``: an RMS or layer norm multiplies channel j by its weight, and adds its bias, as the last thing it does. All
  that reads the norm is named, a router in full precision as well.
- ``values``: attention mixes the values of a channel over positions, linearly. Heads that share their keys and values
  share them here.
- ``gated``: act(gate) * up is linear in up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fold:
    """One set of scales, of as many channels as the writers have rows from ``start`` on, at most.

    Input j of the readers is made by row ``start + j // (repeats * width) * width + j % width`` of the writers. With
    ``blocks`` > 1 readers and writers are stacks of as many blocks of rows (experts), each with scales of its own.
    ``offset`` is what the model adds to the writers' weights before it multiplies by them: Gemma's norms are 1 + w.
    """

    readers: tuple[str, ...]
    writers: tuple[str, ...]
    width: int
    start: int = 0
    repeats: int = 1
    blocks: int = 1
    offset: float = 0.0


def norm(name: str, readers: Sequence[str], width: int, *, bias: bool = False, offset: float = 0.0) -> Fold:
    """A norm (module name) into all that reads it (parameter names); ``width`` channels."""
    writers = (f"{name}.weight", f"{name}.bias") if bias else (f"{name}.weight",)
    return Fold(tuple(readers), writers, width, offset=offset)


def values(attention: str, output: str, queries: int, keys: int, head_dim: int, *, bias: bool = False) -> Fold:
    """The values of ``<attention>.qkv_proj``, rows after queries and keys, into the output matrix (module name)."""
    writers = tuple(f"{attention}.qkv_proj.{part}" for part in (("weight", "bias") if bias else ("weight",)))
    return Fold((f"{output}.weight",), writers, head_dim, queries + keys, queries // keys)


def gated(mlp: str, inner: int, *, bias: bool = False, blocks: int = 1) -> Fold:
    """The upper half of ``<mlp>.gate_up_proj`` into ``<mlp>.down_proj``; ``blocks`` experts."""
    writers = tuple(f"{mlp}.gate_up_proj.{part}" for part in (("weight", "bias") if bias else ("weight",)))
    return Fold((f"{mlp}.down_proj.weight",), writers, inner, inner, blocks=blocks)
