"""Activations and gates on the CPU. Axes: M rows, H features."""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.elementwise import COSTLY, each
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.ir import T
from llm_build.ops.gates import ERFC, ERFC_P, TANH_GELU, GeluLabel, GeluMulLabel, SiluMulLabel


def silu_mul(label: SiluMulLabel, isa: Isa) -> tirx.PrimFunc:
    """gate / (1 + exp(-gate)) * up; the gates are the first half of each row."""
    width, rows = label.width, v.size("rows")

    def body(gate_up: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            def gated(start: Expr, count: int) -> None:
                at = row * (2 * width) + start
                gate, up = T.Bind(v.load(gate_up, at, count)), v.load(gate_up, at + width, count)
                decay = v.exp2(gate * v.splat(-v.LOG2_E, count), count)
                v.store(y, row * width + start, gate / (v.splat(1.0, count) + decay) * up, count)

            v.for_vectors(width, isa.lanes, gated)

        v.for_rows(rows, width * COSTLY, one)

    return v.kernel([Arg("gate_up", (rows, 2 * width)), Arg("y", (rows, width))], body)


def gelu_mul(label: GeluMulLabel, isa: Isa) -> tirx.PrimFunc:
    """gelu(gate) * up, gelu in its tanh form; the gates are the first half of each row."""
    width, rows = label.width, v.size("rows")

    def body(gate_up: Buffer, y: Buffer) -> None:
        def one(row: Expr) -> None:
            def gated(start: Expr, count: int) -> None:
                at = row * (2 * width) + start
                gate, up = T.Bind(v.load(gate_up, at, count)), v.load(gate_up, at + width, count)
                v.store(y, row * width + start, _tanh_gelu(gate, count) * up, count)

            v.for_vectors(width, isa.lanes, gated)

        v.for_rows(rows, width * COSTLY, one)

    return v.kernel([Arg("gate_up", (rows, 2 * width)), Arg("y", (rows, width))], body)


def gelu(label: GeluLabel, isa: Isa) -> tirx.PrimFunc:
    """x * Phi(x), or its tanh form x / (1 + exp(-2u))."""
    return each(label.width, COSTLY, {"gelu": _exact_gelu, "gelu_tanh": _tanh_gelu}[label.kind], isa)


def _exact_gelu(x: Expr, lanes: int) -> Expr:
    """max(x, 0) - |x| * erfc(|x| / sqrt(2)) / 2."""
    one, zero = v.splat(1.0, lanes), v.splat(0.0, lanes)
    size = T.Bind(T.max(x, zero - x))
    t = T.Bind(one / (one + size * v.splat(ERFC_P * 0.5**0.5, lanes)))
    series = v.horner(t, [0.5 * term for term in ERFC], lanes)
    decay = v.exp2(x * x * v.splat(-0.5 * v.LOG2_E, lanes), lanes)
    return T.max(x, zero) - size * series * t * decay


def _tanh_gelu(x: Expr, lanes: int) -> Expr:
    scale, cubic = TANH_GELU
    inner = x * v.splat(-scale * v.LOG2_E, lanes) * (v.splat(1.0, lanes) + x * x * v.splat(cubic, lanes))
    return x / (v.splat(1.0, lanes) + v.exp2(inner, lanes))
