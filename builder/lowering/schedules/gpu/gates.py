"""Activations and gates on a GPU: a thread for each element. Axes: M rows, H features."""

from __future__ import annotations

import math
from collections.abc import Callable

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.elementwise import mapped
from llm_build.lowering.schedules.ir import T
from llm_build.ops.gates import ERFC, ERFC_P, TANH_GELU, GeluLabel, GeluMulLabel, SiluMulLabel


def silu_mul(label: SiluMulLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """gate / (1 + exp(-gate)) * up; the gates are the first half of each row."""
    return _gated(label.width, _silu, traits)


def gelu_mul(label: GeluMulLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """gelu(gate) * up, gelu in its tanh form."""
    return _gated(label.width, _tanh_gelu, traits)


def _gated(width: int, activated: Callable[[Expr], Expr], traits: GpuTraits) -> tirx.PrimFunc:
    rows = b.size("rows")

    def body(gate_up: Buffer, y: Buffer) -> None:
        def one(index: Expr) -> None:
            at = T.Bind(b.div(index, width) * (2 * width) + b.mod(index, width))
            b.store(y, index, activated(T.Bind(b.load(gate_up, at))) * b.load(gate_up, at + width))

        b.for_each(traits, rows * width, one)

    return b.kernel([Arg("gate_up", (rows, 2 * width)), Arg("y", (rows, width))], body)


def gelu(label: GeluLabel, traits: GpuTraits) -> tirx.PrimFunc:
    """x * Phi(x), or its tanh form."""
    return mapped(label.width, {"gelu": _exact_gelu, "gelu_tanh": _tanh_gelu}[label.kind], traits)


def _exact_gelu(x: Expr) -> Expr:
    """max(x, 0) - |x| * erfc(|x| / sqrt(2)) / 2."""
    size = T.Bind(T.max(x, -x))
    t = T.Bind(b.f32(1.0) / (b.f32(1.0) + size * b.f32(ERFC_P * 0.5**0.5)))
    series = b.horner(t, [0.5 * term for term in ERFC]) * t
    return T.max(x, b.f32(0.0)) - size * series * tirx.exp2(x * x * b.f32(-0.5 * b.LOG2_E))


def _silu(x: Expr) -> Expr:
    return x / (b.f32(1.0) + b.exp(-x))


def _tanh_gelu(x: Expr) -> Expr:
    scale, cubic = TANH_GELU
    inner = x * b.f32(-scale * math.log2(math.e)) * (b.f32(1.0) + x * x * b.f32(cubic))
    return x / (b.f32(1.0) + tirx.exp2(inner))


GATES = {"silu_mul": _silu, "gelu_mul": _tanh_gelu}
