"""The function around a kernel's body, for CPUs and GPUs alike: its arguments, bound to buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from llm_build.lowering.schedules.ir import IRBuilder, T


@dataclass(frozen=True, slots=True)
class Arg:
    """A tensor argument. ``offset``: it may start inside its storage, as the cache's auxiliary arrays do."""

    name: str
    shape: tuple[Any, ...]
    dtype: str = "float32"
    offset: bool = False


@dataclass(frozen=True, slots=True)
class Scalar:
    name: str
    dtype: str


def function(
    args: Sequence[Arg | Scalar],
    match: Callable[[Arg | Scalar, Any], Any],
    flat: Callable[[Arg | Scalar, Any], Any],
    body: Callable[..., None],
) -> tirx.PrimFunc:
    """A function of ``args``, which gives ``body`` each of them as ``flat`` has it, out of what ``match`` bound."""
    with IRBuilder() as builder, T.prim_func(is_private=True, s_tir=True):
        T.func_name("kernel")
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        handles = [
            T.arg(arg.name, T.handle() if isinstance(arg, Arg) else tirx.Var(arg.name, arg.dtype)) for arg in args
        ]
        matched = [match(arg, handle) for arg, handle in zip(args, handles, strict=True)]
        body(*(flat(arg, buffer) for arg, buffer in zip(args, matched, strict=True)))
    return builder.get()
