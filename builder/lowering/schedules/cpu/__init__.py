"""Kernels for x86-64, by the operation they replace. Each takes its label's fields and an Isa; None: plain loops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx

from builder.lowering.schedules.cpu import experts, gemma, inputs, linear, norms, pointwise
from builder.lowering.schedules.cpu.vector import Isa

Schedule = Callable[[Mapping[str, Any], Isa], tirx.PrimFunc | None]

SCHEDULES: dict[str, Schedule] = {
    "linear": linear.linear,
    "row_scale": inputs.row_scale,
    "rounded": inputs.rounded,
    "embedding": pointwise.embedding,
    "rms_norm": norms.rms_norm,
    "qk_norm": norms.qk_norm,
    "layer_norm": norms.layer_norm,
    "gelu": pointwise.gelu,
    "silu_mul": pointwise.silu_mul,
    "add": pointwise.add,
    "joined": pointwise.joined,
    "last_row": pointwise.last_row,
    "take_rows": pointwise.take_rows,
    "gemma_norm": gemma.norm,
    "gelu_mul": gemma.gelu_mul,
    "scaled": gemma.scaled,
    "soft_cap": gemma.soft_cap,
    "expert_linear": experts.linear,
    "head_norm_rotary": gemma.head_norm_rotary,
}
