"""What CPU kernels are written with: flat buffers, vectors of float32 lanes, and elementary functions on them.

Kernels are built statement by statement with TVM's IRBuilder: Python loops are unrolled code, ``T.serial`` loops stay
loops. Functions of the C library are never called (a vector call would go lane by lane): exp2, log2, sin and cos are
polynomials.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm import tirx

from llm_build.lowering.schedules import function
from llm_build.lowering.schedules.ir import T

Arg = function.Arg
Scalar = function.Scalar
Expr = Any
Buffer = Any

MINUS_INFINITY = -1e30  # finite, so that no difference of two of them is NaN
LOG2_E = math.log2(math.e)
PARALLEL_MACS = 1 << 15  # below this many multiply-adds, waking the other threads costs more than they save


@dataclass(frozen=True, slots=True)
class Isa:
    """``lanes``: float32 values in the widest register; ``f16c``: float16 conversion in hardware; ``vnni``: sums of
    four products of bytes, in registers of that width."""

    lanes: int
    f16c: bool
    vnni: bool = False

    def widest_divisor(self, width: int) -> int:
        """The most lanes, at most the register's, that divide ``width``."""
        return math.gcd(self.lanes, width)


def kernel(args: Sequence[Arg | Scalar], body: Callable[..., None]) -> tirx.PrimFunc:
    """A function of ``args``; ``body`` gets each tensor as a flat buffer (row-major) and each scalar as a variable."""
    return function.function(args, _match, _flat, body)


def size(name: str) -> tirx.Var:
    """A symbolic extent."""
    return tirx.Var(name, "int64")


def _match(arg: Arg | Scalar, handle: Any) -> Any:
    if isinstance(arg, Scalar):
        return handle
    offset = tirx.Var(f"{arg.name}_offset", "int64") if arg.offset else None
    return T.match_buffer(handle, arg.shape, arg.dtype, elem_offset=offset)


def _flat(arg: Arg | Scalar, buffer: Any) -> Any:
    if isinstance(arg, Scalar):
        return buffer
    count: Any = 1
    for extent in arg.shape:
        count = count * extent
    dtype = "uint16" if arg.dtype == "bfloat16" else arg.dtype  # LLVM gets no bfloat16: see to_float32
    return T.decl_buffer((count,), dtype, data=buffer.data, elem_offset=buffer.elem_offset)


def scratch(count: Any, dtype: str = "float32") -> Buffer:
    """Memory of the running task; a small constant count that is only indexed by constants stays in registers."""
    return T.alloc_buffer((count,), dtype)


def load(buffer: Buffer, index: Expr, lanes: int = 1) -> Expr:
    return tirx.BufferLoad(buffer, [index if lanes == 1 else tirx.Ramp(index, 1, lanes)])


def gather(buffer: Buffer, index: Expr, stride: int, lanes: int) -> Expr:
    return tirx.BufferLoad(buffer, [tirx.Ramp(index, stride, lanes)])


def store(buffer: Buffer, index: Expr, value: Expr, lanes: int = 1) -> None:
    T.buffer_store(buffer, value, [index if lanes == 1 else tirx.Ramp(index, 1, lanes)])


def splat(value: Expr | float | int, lanes: int, dtype: str = "float32") -> Expr:
    scalar = tirx.const(value, dtype) if isinstance(value, int | float) else value
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def vector_type(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def cast(value: Expr, dtype: str, lanes: int) -> Expr:
    return tirx.Cast(vector_type(dtype, lanes), value)


def bits(value: Expr, dtype: str, lanes: int) -> Expr:
    """The same bits as another type of the same size."""
    return T.reinterpret(vector_type(dtype, lanes), value)


def to_float32(value: Expr, dtype: str, lanes: int, isa: Isa) -> Expr:
    """A stored value as float32. Without F16C the conversion is arithmetic: exponent and mantissa are moved into place
    and the exponent's bias is multiplied away, exact for every finite float16, subnormals included."""
    if dtype == "float32":
        return value
    if dtype == "bfloat16":
        return bits(cast(value, "uint32", lanes) << splat(16, lanes, "uint32"), "float32", lanes)
    if dtype != "float16" or isa.f16c:
        return cast(value, "float32", lanes)
    half = T.Bind(cast(bits(value, "uint16", lanes), "uint32", lanes))
    sign = (half & splat(0x8000, lanes, "uint32")) << splat(16, lanes, "uint32")
    rest = (half & splat(0x7FFF, lanes, "uint32")) << splat(13, lanes, "uint32")
    magnitude = bits(rest, "float32", lanes) * splat(2.0**112, lanes)
    return bits(bits(magnitude, "uint32", lanes) | sign, "float32", lanes)


def shuffle(value: Expr, lanes: int, indices: Sequence[int]) -> Expr:
    """Lanes ``indices`` of a vector of ``lanes``; there may be more of them than it has."""
    copies = -(-len(indices) // lanes)
    return tirx.Shuffle([value] * copies, list(indices))


def transposed(rows: Sequence[Expr]) -> list[Expr]:
    """A square of as many vectors as lanes, turned: at distance 1, 2, 4, ... the off-diagonal blocks change places."""
    turned, lanes, distance = list(rows), len(rows), 1
    while distance < lanes:
        for low in range(lanes):
            if low & distance:
                continue
            pair = [turned[low], turned[low + distance]]
            mine = [lane + lanes - distance if lane & distance else lane for lane in range(lanes)]
            other = [lane + lanes if lane & distance else lane + distance for lane in range(lanes)]
            turned[low], turned[low + distance] = (T.Bind(tirx.Shuffle(pair, chosen)) for chosen in (mine, other))
        distance *= 2
    return turned


def lane_sum(value: Expr, lanes: int) -> Expr:
    """The sum of a vector's lanes, in a tree."""
    while lanes > 1:
        half = lanes // 2
        whole = T.Bind(value)
        value = shuffle(whole, lanes, range(half)) + shuffle(whole, lanes, range(half, lanes))
        lanes = half
    return value


def lane_max(value: Expr, lanes: int) -> Expr:
    """The largest of a vector's lanes."""
    while lanes > 1:
        half = lanes // 2
        whole = T.Bind(value)
        value = T.max(shuffle(whole, lanes, range(half)), shuffle(whole, lanes, range(half, lanes)))
        lanes = half
    return value


def horner(x: Expr, coefficients: Sequence[float], lanes: int, dtype: str = "float32") -> Expr:
    """c[0] + c[1] x + c[2] x^2 + ..."""
    value = splat(coefficients[-1], lanes, dtype)
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + splat(coefficient, lanes, dtype)
    return value


def _floor(x: Expr, lanes: int, dtype: str = "float32") -> Expr:
    return T.call_llvm_pure_intrin(vector_type(dtype, lanes), "llvm.floor", x)


def exp2(x: Expr, lanes: int) -> Expr:
    """2^x to 1e-7 of its value; below 2^-126 the smallest normal number, at 127.5 and above 2^127.5."""
    clamped = T.Bind(T.min(T.max(x, splat(-126.0, lanes)), splat(127.4, lanes)))
    whole = T.Bind(_floor(clamped + splat(0.5, lanes), lanes))
    rest = T.Bind(clamped - whole)
    series = [math.log(2) ** k / math.factorial(k) for k in range(8)]  # of 2^x on [-1/2, 1/2]: remainder 5e-9
    exponent = (cast(whole, "int32", lanes) + splat(127, lanes, "int32")) << splat(23, lanes, "int32")
    return horner(rest, series, lanes) * bits(exponent, "float32", lanes)


def tanh(x: Expr, lanes: int) -> Expr:
    """tanh to 2e-7: 1 - 2 / (e^2x + 1)."""
    power = exp2(x * splat(2 * LOG2_E, lanes), lanes)
    return splat(1.0, lanes) - splat(2.0, lanes) / (power + splat(1.0, lanes))


def log2(x: Expr) -> Expr:
    """log2 of a positive normal scalar, to 1e-7: exponent + atanh series of the mantissa in [sqrt(1/2), sqrt(2))."""
    raw = T.Bind(bits(x, "int32", 1))
    shifted = T.Bind(raw - tirx.const(0x3F3504F3, "int32"))  # the bits of sqrt(1/2)
    exponent = T.Bind(shifted >> tirx.const(23, "int32"))
    mantissa = T.Bind(bits(raw - (exponent << tirx.const(23, "int32")), "float32", 1))
    ratio = T.Bind((mantissa - tirx.const(1.0, "float32")) / (mantissa + tirx.const(1.0, "float32")))
    square = T.Bind(ratio * ratio)
    series = horner(square, [2 * LOG2_E / k for k in (1, 3, 5, 7, 9)], 1)
    return tirx.Cast("float32", exponent) + ratio * series


def sin_cos(angle: Expr, lanes: int) -> tuple[Expr, Expr]:
    """sin and cos of float32 angles (radians, up to 1e6), to float32 rounding; quarter turns go off in float64."""
    double = "float64"
    wide = T.Bind(cast(angle, double, lanes))
    quarters = T.Bind(_floor(wide * splat(2 / math.pi, lanes, double) + splat(0.5, lanes, double), lanes, double))
    rest = T.Bind(wide - quarters * splat(math.pi / 2, lanes, double))
    square = T.Bind(rest * rest)
    sine_terms = [(-1) ** k / math.factorial(2 * k + 1) for k in range(6)]
    cosine_terms = [(-1) ** k / math.factorial(2 * k) for k in range(7)]
    sine = T.Bind(rest * horner(square, sine_terms, lanes, double))
    cosine = T.Bind(horner(square, cosine_terms, lanes, double))
    turn = T.Bind(cast(quarters, "int32", lanes))
    one, two, zero = splat(1, lanes, "int32"), splat(2, lanes, "int32"), splat(0, lanes, "int32")
    odd = (turn & one) != zero  # not bound: TVM cannot bind a vector of booleans

    def signed(value: Expr, quarter: Expr) -> Expr:
        return cast(tirx.Select((quarter & two) != zero, splat(0.0, lanes, double) - value, value), "float32", lanes)

    return signed(tirx.Select(odd, cosine, sine), turn), signed(tirx.Select(odd, sine, cosine), turn + one)


@contextmanager
def loop(extent: Any, parallel: bool = False) -> Iterator[Expr]:
    """A loop that stays a loop; ``parallel``: its iterations are spread over the threads."""
    with T.parallel(0, extent) if parallel else T.serial(0, extent) as index:
        yield index


@contextmanager
def when(condition: Expr) -> Iterator[None]:
    with T.If(condition), T.Then():
        yield


def if_else(condition: Expr, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
    with T.If(condition):
        with T.Then():
            then()
        with T.Else():
            otherwise()


def for_rows(rows: Expr, cost: int, body: Callable[[Expr], None]) -> None:
    """body(row) for each row, over the threads if there are enough of them; ``cost``: multiply-adds of one row."""

    def spread() -> None:
        with loop(rows, parallel=True) as row:
            body(row)

    def alone() -> None:
        with loop(rows) as row:
            body(row)

    if_else(rows >= tirx.const(max(2, PARALLEL_MACS // cost), "int64"), spread, alone)


def for_vectors(width: int, lanes: int, body: Callable[[Expr, int], None]) -> None:
    """body(start, lanes) over 0..width: whole vectors, then single lanes."""
    whole = width // lanes if lanes > 1 else 0
    if whole:
        with loop(whole) as step:
            body(step * lanes, lanes)
    if width - whole * lanes:
        with loop(width - whole * lanes) as step:
            body(step + whole * lanes, 1)
