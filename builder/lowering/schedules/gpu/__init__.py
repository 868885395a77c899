"""Kernels for GPUs, by the operation they replace. Each takes its label's fields and a Device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tvm import tirx

from builder.lowering.schedules.gpu import experts, inputs, linear, norms, pointwise
from builder.lowering.schedules.gpu.block import Device

Schedule = Callable[[Mapping[str, Any], Device], tirx.PrimFunc]

SCHEDULES: dict[str, Schedule] = {
    "linear": linear.linear,
    "gated_linear": linear.gated_linear,
    "expert_linear": experts.expert_linear,
    "row_scale": inputs.row_scale,
    "rounded": inputs.rounded,
    "embedding": pointwise.embedding,
    "rms_norm": norms.rms_norm,
    "qk_norm": norms.qk_norm,
    "layer_norm": norms.layer_norm,
    "gemma_norm": norms.gemma_norm,
    "head_norm_rotary": norms.head_norm_rotary,
    "qk_means": norms.qk_means,
    "qk_scaled": norms.qk_scaled,
    "expert_sum": norms.expert_sum,
    "routes": pointwise.routes,
    "gelu": pointwise.gelu,
    "gelu_mul": pointwise.gelu_mul,
    "silu_mul": pointwise.silu_mul,
    "scaled": pointwise.scaled,
    "soft_cap": pointwise.soft_cap,
    "add": pointwise.add,
    "joined": pointwise.joined,
    "last_row": pointwise.last_row,
    "take_rows": pointwise.take_rows,
}
