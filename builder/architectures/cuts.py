"""How tensor parallelism cuts a model over several ranks (Shoeybi et al. 2019, arXiv:1909.08053), as printable data.

A part of a model states how its matrices are cut (builder/architectures/parts). A matrix (output, input) is cut by
``rows``, its outputs, or by ``columns``, its inputs: then each rank has a sum of its own, and all of them are added
up. A bias goes with the rows of its matrix; beside a matrix that is cut by columns it is whole, and counts once. What
no cut names is whole on every rank: norms, embeddings, routers, a tied head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llm_build.architectures.weights import Parameter

ROWS, COLUMNS = "rows", "columns"
_VOCABULARY = "vocab_size"


@dataclass(frozen=True, slots=True)
class Part:
    """``units`` runs of ``width`` rows or inputs each, of which every rank gets as many; ``what`` they are, for people.

    ``shared``: where there are fewer of them than ranks, each is held by several ranks (heads of keys and values).
    """

    what: str
    units: int
    width: int = 1
    shared: bool = False


@dataclass(frozen=True, slots=True)
class Cut:
    """The parts along an axis, in order, each cut for itself; all of them once in each of ``blocks`` (experts)."""

    axis: str  # rows | columns
    parts: tuple[Part, ...]
    blocks: int = 1


def rows(*parts: Part, blocks: int = 1) -> Cut:
    """A matrix whose outputs are these parts, in order."""
    return Cut(ROWS, parts, blocks)


def columns(part: Part) -> Cut:
    """A matrix that reads a part, or a stack of matrices that do."""
    return Cut(COLUMNS, (part,))


def query_heads(count: int, width: int) -> Part:
    """Heads of queries, of ``width`` features each."""
    return Part("num_attention_heads", count, width)


def key_heads(count: int, width: int) -> Part:
    """Heads of keys, or of values."""
    return Part("num_key_value_heads", count, width, shared=True)


def vocabulary(size: int) -> Part:
    """Tokens; whole where they cannot be dealt out evenly."""
    return Part(_VOCABULARY, size)


def per_rank(units: int, shards: int, *, shared: bool = False) -> int:
    """How many of ``units`` each of ``shards`` ranks has; 0 if they cannot be dealt out evenly."""
    if units % shards == 0:
        return units // shards
    return 1 if shared and shards % units == 0 else 0


def cut_of(parameter: Parameter, cuts: Mapping[str, Cut], shards: int) -> Cut | None:
    """How a parameter is cut for that many ranks; None: it is whole."""
    cut = cuts.get(parameter.name.rpartition(".")[0])
    if cut is None or shards == 1 or (cut.axis == COLUMNS and parameter.kind == "bias"):
        return None
    return None if parameter.kind == "head" and cut.parts[0].units % shards else cut


def local(parameter: Parameter, cut: Cut | None, shards: int) -> Parameter:
    """The parameter as each rank has it."""
    if cut is None:
        return parameter
    own = [per_rank(part.units, shards, shared=part.shared) * part.width for part in cut.parts]
    axis, length = int(cut.axis == COLUMNS), cut.blocks * sum(own)
    return replace(parameter, shape=(*parameter.shape[:axis], length, *parameter.shape[axis + 1 :]))


def local_parameters(table: Sequence[Parameter], cuts: Mapping[str, Cut], shards: int) -> tuple[Parameter, ...]:
    """The parameters of a model as each rank has them, in their order."""
    return tuple(local(parameter, cut_of(parameter, cuts, shards), shards) for parameter in table)
