"""Kernels for x86-64, by the operation they replace. Each takes its label's fields and an Isa; None: plain loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx

from builder.lowering.schedules.cpu import linear, pointwise
from builder.lowering.schedules.cpu.vector import Isa

Schedule = Callable[[Mapping[str, Any], Isa], tirx.PrimFunc | None]

SCHEDULES: dict[str, Schedule] = {
    "linear": linear.linear,
    "embedding": pointwise.embedding,
    "rms_norm": pointwise.rms_norm,
    "silu_mul": pointwise.silu_mul,
    "last_row": pointwise.last_row,
    "take_rows": pointwise.take_rows,
}
