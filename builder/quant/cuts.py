"""How the stored tensors of a parameter are cut for tensor parallelism: the same bytes, dealt out.

A cut of rows goes through words, scales and zero points row by row. A cut of inputs goes through them by groups, which
must end where it does; a scale that serves a whole row, or a whole matrix, goes to every rank. Zero points stand
several in a word, and are packed anew where a rank's do not fill whole words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_build.architectures.cuts import COLUMNS, Cut, cut_of, local, per_rank
from llm_build.architectures.weights import Parameter
from llm_build.formats.slicing import Slicing, slicing_to_json
from llm_build.quant.layout import Scheme, StoredTensor, is_quantized, is_transposed, stored_tensors


@dataclass(frozen=True, slots=True)
class SplitTensor:
    """A stored tensor, what each rank has of it, and the cut between them; None: every rank has all of it."""

    full: StoredTensor
    local: StoredTensor
    slicing: Slicing | None


def split_tensors(
    table: Sequence[Parameter], cuts: Mapping[str, Cut], scheme: Scheme, ranks: int
) -> dict[str, SplitTensor]:
    """Every stored tensor of a model by name, in order."""
    splits = [split for parameter in table for split in split_parameter(parameter, cuts, scheme, ranks)]
    return {split.full.name: split for split in splits}


def split_parameter(parameter: Parameter, cuts: Mapping[str, Cut], scheme: Scheme, ranks: int) -> list[SplitTensor]:
    """The stored tensors of one parameter. The cut must fit, as a plan has made sure: see ``split_problem``."""
    cut = cut_of(parameter, cuts, ranks)
    assert not (problem := split_problem(parameter, cuts, scheme, ranks)), problem
    full = stored_tensors(parameter, scheme)
    if cut is None:
        return [SplitTensor(tensor, tensor, None) for tensor in full]
    part = stored_tensors(local(parameter, cut, ranks), scheme)
    packing = scheme.for_parameter(parameter.name)
    return [
        SplitTensor(whole, own, _slicing(whole, parameter, cut, packing)) for whole, own in zip(full, part, strict=True)
    ]


def _slicing(tensor: StoredTensor, parameter: Parameter, cut: Cut, scheme: Scheme) -> Slicing | None:
    parts = tuple((part.units, part.width) for part in cut.parts)
    if tensor.role == "plain":
        return Slicing(int(cut.axis == COLUMNS), parts, cut.blocks)
    axis = int((cut.axis == COLUMNS) != is_transposed(parameter, scheme))
    if cut.axis != COLUMNS:
        return None if tensor.role == "scale" and scheme.scale_per == "tensor" else Slicing(axis, parts, cut.blocks)
    if tensor.role != "weight" and not scheme.group_size:  # one for the whole row
        return None
    if tensor.role == "zero":
        return Slicing(axis, ((parameter.shape[1] // scheme.group_size, 1),), bits=scheme.bits)
    return Slicing(axis, ((tensor.shape[axis], 1),))


def split_problem(parameter: Parameter, cuts: Mapping[str, Cut], scheme: Scheme, ranks: int) -> str:
    """Why a parameter cannot be cut for that many ranks, in words; "": it can."""
    cut = cut_of(parameter, cuts, ranks)
    if cut is None:
        return ""
    for part in cut.parts:
        if not per_rank(part.units, ranks, shared=part.shared):
            return f"{part.what} is {part.units}, which {ranks} does not divide" + (
                ", nor is it a multiple of that" if part.shared else ""
            )
    if cut.axis != COLUMNS or not is_quantized(parameter, scheme):
        return ""
    scheme, width = scheme.for_parameter(parameter.name), parameter.shape[1] // ranks
    unit = scheme.group_size or scheme.per_word
    if width % unit:
        grouped = f"groups of {unit} inputs" if scheme.group_size else f"words of {unit} weights"
        return f"{parameter.name} has {grouped}, and {ranks} ranks would have {width} inputs each"
    return ""


def slicing_json(split: SplitTensor) -> dict[str, Any] | None:
    """The cut as a library's metadata has it (see formats/slicing.py); None: the tensor is whole."""
    return slicing_to_json(split.slicing)


def preprocs(split: SplitTensor, ranks: int) -> list[dict[str, Any]]:
    """What a library's metadata says of a stored tensor that is cut, [] of one that is not: the function that cuts the
    whole one, and its shapes (``Param::Preproc`` of mlc-ai/mlc-llm, cpp/metadata/model.cc). Readers of presharded files
    take from it only that there is something, and look for ``tp_shard_name``."""
    if split.slicing is None:
        return []
    shape = "x".join(map(str, split.full.shape))
    parts = "_".join(f"{units}x{width}" for units, width in split.slicing.parts)
    name = f"shard_{split.full.dtype}_{shape}_axis{split.slicing.axis}_{parts}_blocks{split.slicing.blocks}"
    out_shape = [ranks, *split.local.shape]
    return [
        {"func_name": name, "in_shape": list(split.full.shape), "out_shape": out_shape, "out_dtype": split.full.dtype}
    ]
