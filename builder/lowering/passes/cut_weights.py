"""Functions that cut whole weights for several ranks, for readers that do it while they load: ``preprocs`` in the
library's metadata (LoadMultiGPU of mlc-ai/mlc-llm, cpp/multi_gpu/multi_gpu_loader.cc)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

from tvm import ir, tirx, transform

from llm_build.formats.slicing import WORD_BITS, Slicing
from llm_build.lowering.kernel_modules import backend
from llm_build.lowering.machine import Machine
from llm_build.lowering.schedules.function import Arg
from llm_build.lowering.schedules.ir import T
from llm_build.quant.cuts import SplitTensor, preprocs, slicing_json, split_tensors

__all__ = ["attach", "describe", "kernel", "split_tensors"]

Expr = Any


def describe(shares: Mapping[str, SplitTensor], ranks: int) -> dict[str, dict[str, Any]]:
    """What the library's metadata says of each stored tensor: how it is cut, and the functions that cut it."""
    return {name: {"preprocs": preprocs(share, ranks), "cut": slicing_json(share)} for name, share in shares.items()}


def attach(shares: Mapping[str, SplitTensor], shards: int, machine: Machine) -> transform.Pass:
    """Add a function (whole, parts) for every kind of cut: parts (shards, ...) is what each rank has of the whole."""

    def add(module: ir.IRModule, _context: Any) -> ir.IRModule:
        found = {each["func_name"]: share for share in shares.values() for each in preprocs(share, shards)}
        result = ir.IRModule(dict(module.functions_items()), attrs=module.attrs)
        for name, share in found.items():
            result[name] = kernel(share, shards, machine).with_attr("global_symbol", name)
        return result

    return transform.module_pass(add, opt_level=0, name="AttachCuts")


def kernel(share: SplitTensor, shards: int, machine: Machine) -> tirx.PrimFunc:
    """One value of the parts after the other; on a GPU a thread each."""
    assert share.slicing is not None
    cut, whole, own = share.slicing, share.full.shape, share.local.shape
    count = shards * prod(own)
    assert count < 1 << 31, "an index is an int32"
    args = [Arg("whole", whole, share.full.dtype), Arg("parts", (shards, *own), share.full.dtype)]

    def store(source: Any, parts: Any) -> Callable[[Expr], None]:
        def value(place: Expr) -> Expr:
            return tirx.BufferLoad(source, [place])

        def one(index: Expr) -> None:
            cut_value = (
                _repacked_word(cut, whole, own, shards, index, value)
                if cut.bits
                else value(_index_in_whole(share, shards, index))
            )
            T.buffer_store(parts, cut_value, [index])

        return one

    return backend(machine.kind).elementwise(args, count, store, machine.traits)


def _div(value: Expr, by: Expr | int) -> Expr:
    """Rounded down; nothing here is below zero."""
    return tirx.truncdiv(value, tirx.const(by, "int32") if isinstance(by, int) else by)


def _mod(value: Expr, by: Expr | int) -> Expr:
    return tirx.truncmod(value, tirx.const(by, "int32") if isinstance(by, int) else by)


def _index_in_whole(share: SplitTensor, shards: int, index: Expr) -> Expr:
    """Where the value ``index`` of the parts is in the whole."""
    assert share.slicing is not None
    axis, whole, own = share.slicing.axis, share.full.shape, share.local.shape
    inner, outer = prod(own[axis + 1 :]), prod(own[:axis])
    run = _div(index, inner)
    at, row = _mod(run, own[axis]), _mod(_div(run, own[axis]), outer)
    rank = _div(run, own[axis] * outer)
    return (row * whole[axis] + _position_on_axis(share.slicing, shards, rank, at)) * inner + _mod(index, inner)


def _position_on_axis(cut: Slicing, shards: int, rank: Expr, at: Expr) -> Expr:
    """Position ``at`` of a rank's part as a position of the whole axis."""
    owned = [max(1, units // shards) * width for units, width in cut.parts]
    place, within = None, _mod(at, sum(owned))
    for index in reversed(range(len(owned))):
        units, width = cut.parts[index]
        start = sum(units * width for units, width in cut.parts[:index])
        found = start + _div(rank * units, shards) * width + within - sum(owned[:index])
        place = found if place is None else tirx.if_then_else(within < sum(owned[: index + 1]), found, place)
    return _div(at, sum(owned)) * sum(units * width for units, width in cut.parts) + place


def _repacked_word(
    cut: Slicing, whole: tuple[int, ...], own: tuple[int, ...], shards: int, index: Expr, value: Any
) -> Expr:
    """The word ``index`` of the parts: fields of words of the whole (rows, words), put together anew."""
    per_word, owned = WORD_BITS // cut.bits, cut.parts[0][0] // shards
    row, word, rank = _mod(_div(index, own[1]), own[0]), _mod(index, own[1]), _div(index, own[0] * own[1])
    found = tirx.const(0, "uint32")
    for slot in range(per_word):
        at = word * per_word + slot
        field = rank * owned + at
        held = value(row * whole[1] + _div(field, per_word))
        moved = tirx.bitwise_and(held >> _shift(field, per_word, cut.bits), tirx.const((1 << cut.bits) - 1, "uint32"))
        moved = moved << tirx.const(slot * cut.bits, "uint32")
        found = tirx.bitwise_or(found, tirx.if_then_else(at < owned, moved, tirx.const(0, "uint32")))
    return found


def _shift(field: Expr, per_word: int, bits: int) -> Expr:
    return tirx.Cast("uint32", _mod(field, per_word) * bits)
