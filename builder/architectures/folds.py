"""Where a model lets an input channel be scaled: multiplied by s in what reads it, divided by s in what makes it.

A part of a model states what a matrix may be folded into (builder/architectures/parts). A matrix that no fold names is
never scaled: its input comes from a sum (the residual stream) or through a nonlinearity, or it is the embedding as
well. Why a fold is exact:

- ``norm``: an RMS or layer norm multiplies channel j by its weight, and adds its bias, as the last thing it does. All
  that reads the norm is named, a router in full precision as well.
- ``values``: attention mixes the values of a channel over positions, linearly. Heads that share their keys and values
  share them here.
- ``gated``: act(gate) * up is linear in up.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fold:
    """One set of scales, of as many channels as the writers have rows from ``start`` on, at most. A part states the
    writers; the readers are the rows of the table that name the fold.

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


def norm(name: str, width: int, *, bias: bool = False, offset: float = 0.0) -> Fold:
    """A norm (module name) of ``width`` channels."""
    writers = (f"{name}.weight", f"{name}.bias") if bias else (f"{name}.weight",)
    return Fold((), writers, width, offset=offset)


def values(qkv: str, queries: int, keys: int, head_dim: int, *, bias: bool = False) -> Fold:
    """The values of ``qkv`` (module name), rows after those of queries and keys; all counts are rows."""
    return Fold((), _weight_and_bias(qkv, bias), head_dim, queries + keys, queries // keys)


def gated(gate_up: str, inner: int, *, bias: bool = False, blocks: int = 1) -> Fold:
    """The second half of ``gate_up`` (module name), its ups; ``blocks`` experts."""
    return Fold((), _weight_and_bias(gate_up, bias), inner, inner, blocks=blocks)


def _weight_and_bias(module: str, bias: bool) -> tuple[str, ...]:
    return (f"{module}.weight", f"{module}.bias") if bias else (f"{module}.weight",)
