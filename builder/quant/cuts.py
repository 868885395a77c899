"""How the stored tensors of a parameter are cut for tensor parallelism: the same bytes, dealt out.

A cut of rows goes through words, scales and zero points row by row. A cut of inputs goes through them by groups, which
must end where it does; a scale that serves a whole row, or a whole matrix, goes to every rank. Zero points stand
several in a word, and are packed anew where a rank's do not fill whole words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.architectures.cuts import COLUMNS, Cut, cut_of, local, per_rank
from builder.architectures.weights import Parameter
from builder.formats.ranks import Slicing, as_json
from builder.quant.layout import Piece, Scheme, is_quantized, is_transposed, packed


@dataclass(frozen=True, slots=True)
class Share:
    """A stored tensor, what each rank has of it, and the cut between them; None: every rank has all of it."""

    whole: Piece
    local: Piece
    cut: Slicing | None


def shares(table: Sequence[Parameter], cuts: Mapping[str, Cut], scheme: Scheme, shards: int) -> dict[str, Share]:
    """Every stored tensor of a model by name, in order."""
    found = [share for parameter in table for share in shares_of(parameter, cuts, scheme, shards)]
    return {share.whole.name: share for share in found}


def shares_of(parameter: Parameter, cuts: Mapping[str, Cut], scheme: Scheme, shards: int) -> list[Share]:
    """The stored tensors of one parameter. The cut must fit, as a plan has made sure: see ``misfit``."""
    cut = cut_of(parameter, cuts, shards)
    assert not (said := misfit(parameter, cuts, scheme, shards)), said
    whole = packed(parameter, scheme)
    if cut is None:
        return [Share(piece, piece, None) for piece in whole]
    own = packed(local(parameter, cut, shards), scheme)
    found = scheme.for_parameter(parameter.name)
    return [Share(each, part, _stored(each, parameter, cut, found)) for each, part in zip(whole, own, strict=True)]


def _stored(piece: Piece, parameter: Parameter, cut: Cut, scheme: Scheme) -> Slicing | None:
    parts = tuple((part.units, part.width) for part in cut.parts)
    if piece.role == "plain":
        return Slicing(int(cut.axis == COLUMNS), parts, cut.blocks)
    axis = int((cut.axis == COLUMNS) != is_transposed(parameter, scheme))
    if cut.axis != COLUMNS:
        return None if piece.role == "scale" and scheme.scale_per == "tensor" else Slicing(axis, parts, cut.blocks)
    if piece.role != "weight" and not scheme.group_size:  # one for the whole row
        return None
    if piece.role == "zero":
        return Slicing(axis, ((parameter.shape[1] // scheme.group_size, 1),), bits=scheme.bits)
    return Slicing(axis, ((piece.shape[axis], 1),))


def misfit(parameter: Parameter, cuts: Mapping[str, Cut], scheme: Scheme, shards: int) -> str:
    """Why a parameter cannot be cut for that many ranks, in words; "": it can."""
    cut = cut_of(parameter, cuts, shards)
    if cut is None:
        return ""
    for part in cut.parts:
        if not per_rank(part.units, shards, shared=part.shared):
            return f"{part.what} is {part.units}, which {shards} does not divide" + (
                ", nor is it a multiple of that" if part.shared else ""
            )
    if cut.axis != COLUMNS or not is_quantized(parameter, scheme):
        return ""
    scheme, width = scheme.for_parameter(parameter.name), parameter.shape[1] // shards
    unit = scheme.group_size or scheme.per_word
    if width % unit:
        grouped = f"groups of {unit} inputs" if scheme.group_size else f"words of {unit} weights"
        return f"{parameter.name} has {grouped}, and {shards} ranks would have {width} inputs each"
    return ""


def described(share: Share) -> dict[str, Any] | None:
    """The cut as a library's metadata has it (see formats/ranks.py); None: the tensor is whole."""
    return as_json(share.cut)


def preprocs(share: Share, shards: int) -> list[dict[str, Any]]:
    """What a library's metadata says of a stored tensor that is cut, [] of one that is not: the function that cuts the
    whole one, and its shapes (``Param::Preproc`` of mlc-ai/mlc-llm, cpp/metadata/model.cc). Readers of presharded files
    take from it only that there is something, and look for ``rank_name``."""
    if share.cut is None:
        return []
    shape = "x".join(map(str, share.whole.shape))
    parts = "_".join(f"{units}x{width}" for units, width in share.cut.parts)
    name = f"shard_{share.whole.dtype}_{shape}_axis{share.cut.axis}_{parts}_blocks{share.cut.blocks}"
    out_shape = [shards, *share.local.shape]
    return [
        {"func_name": name, "in_shape": list(share.whole.shape), "out_shape": out_shape, "out_dtype": share.whole.dtype}
    ]
