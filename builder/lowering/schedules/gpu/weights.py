"""Weights as they are stored, and how a GPU reads them: units of a few values along a row.

A unit is a packed word, or up to four values of a weight that is kept as it is. Slots number the values of a row's
units, those that only pad a group included. Axes: N outputs, K inputs, U units of a row, E values of a unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr
from llm_build.lowering.schedules.ir import T
from llm_build.ops.byte_codes import byte_value
from llm_build.ops.weights import StoredWeight

MANTISSA_BITS = 23
ONE_UNIT = 0x4B000000  # 2^23 as a float32: its last bit is worth 1, so an integer in the mantissa reads as itself


@dataclass(frozen=True, slots=True)
class Fragment:
    """What a thread has of one row at a time: ``units_per_load`` units, with their scale and their zero point."""

    values: Buffer
    scale: Buffer | None = None
    zero: Buffer | None = None


@dataclass(frozen=True, slots=True)
class Plain:
    """A weight (N, K) kept as it is."""

    n: int
    k: int
    dtype: str

    plain = True

    @property
    def args(self) -> list[Arg]:
        return [Arg("weight", (self.n, self.k), self.dtype)]

    @property
    def loaded(self) -> str:
        """The type of a value as a buffer of a kernel has it."""
        return "uint16" if self.dtype == "bfloat16" else self.dtype

    @property
    def per_unit(self) -> int:
        return 4 if not self.k % 4 else 1

    @property
    def units(self) -> int:
        return self.k // self.per_unit

    @property
    def transposed(self) -> bool:
        """Whether outputs lie beside each other."""
        return False

    @property
    def units_per_load(self) -> int:
        """Units that a thread takes at a time."""
        return 2 if not self.units % 2 and self.dtype != "float32" else 1

    @property
    def bytes_per_load(self) -> int:
        """Of ``units_per_load`` units."""
        return self.units_per_load * self.per_unit * (4 if self.dtype == "float32" else 2)

    def fragment(self) -> Fragment:
        return Fragment(b.local(self.units_per_load * self.per_unit, self.loaded))

    def load_fragment(self, fragment: Fragment, stored: Sequence[Buffer], n: Expr, u: Expr, load_bytes: int) -> None:
        """``units_per_load`` units from u, a multiple of that, in loads of at most ``load_bytes`` (or a unit)."""
        step = max(
            self.per_unit,
            min(
                self.units_per_load * self.per_unit,
                load_bytes * self.units_per_load * self.per_unit // self.bytes_per_load,
            ),
        )
        for first in range(0, self.units_per_load * self.per_unit, step):
            b.copy(stored[0], n * self.k + u * self.per_unit + first, fragment.values, first, step)

    def units_of(self, fragment: Fragment) -> list[list[Expr]]:
        each = self.per_unit
        return [[b.load(fragment.values, i * each + e) for e in range(each)] for i in range(self.units_per_load)]

    def unit(self, stored: Sequence[Buffer], n: Expr, u: Expr) -> list[Expr]:
        return b.fetch(stored[0], n * self.k + u * self.per_unit, self.per_unit, self.loaded)

    def raw(self, unit: list[Expr], e: int) -> Expr:
        return b.to_float32(unit[e], self.dtype)

    def factor(self, e: int) -> float:
        return 1.0

    def scale(self, stored: Sequence[Buffer], n: Expr, u: Expr) -> Expr | None:
        return None

    def input_of(self, u: Expr, e: Expr) -> tuple[Expr, Expr | None]:
        return u * self.per_unit + e, None


@dataclass(frozen=True, slots=True)
class Packed:
    """Words of ``per_unit`` values and a scale per group. Layout NK: words (N, U), scales (N, groups); KN: turned."""

    n: int
    k: int
    kind: str  # group | int8 | e4m3 | e5m2
    transposed: bool  # layout KN
    bits: int
    group_size: int
    per_unit: int
    group_units: int
    max_int: int
    scale_dtype: str
    one_scale: bool  # of the whole matrix
    zero_point: bool
    plain = False

    @property
    def groups(self) -> int:
        return -(-self.k // self.group_size)

    @property
    def units(self) -> int:
        return self.groups * self.group_units

    @property
    def args(self) -> list[Arg]:
        words, scales = (self.n, self.units), (1 if self.one_scale else self.n, self.groups)
        if self.transposed:
            words, scales = words[::-1], scales[::-1]
        zeros = [Arg("q_zero", (self.n, self.zeros), "uint32")] if self.zero_point else []
        return [Arg("q_weight", words, "uint32"), Arg("q_scale", scales, self.scale_dtype), *zeros]

    @property
    def zeros(self) -> int:
        """Words of a row's zero points."""
        return -(-self.groups // self.per_unit)

    @property
    def units_per_load(self) -> int:
        """Units that a thread takes at a time: of one group, with one load."""
        return 4 if not (self.transposed or self.units % 4 or self.group_units % 4) else 1

    @property
    def bytes_per_load(self) -> int:
        """Of ``units_per_load`` units, without their scale."""
        return self.units_per_load * 4

    def fragment(self) -> Fragment:
        zero = b.local(1) if self.zero_point else None
        return Fragment(b.local(self.units_per_load, "uint32"), b.local(1), zero)

    def load_fragment(self, fragment: Fragment, stored: Sequence[Buffer], n: Expr, u: Expr, _load_bytes: int) -> None:
        """``units_per_load`` units from u, a multiple of that, of one group."""
        at = u * self.n + n if self.transposed else n * self.units + u
        b.copy(stored[0], at, fragment.values, 0, self.units_per_load)
        b.store(fragment.scale, 0, self.scale(stored, n, u))
        if fragment.zero is not None:
            b.store(fragment.zero, 0, self.zero(stored, n, u))

    def units_of(self, fragment: Fragment) -> list[list[Expr]]:
        zero = [b.load(fragment.zero, 0)] if fragment.zero is not None else []
        return [[b.load(fragment.values, i), *zero] for i in range(self.units_per_load)]

    def unit(self, stored: Sequence[Buffer], n: Expr, u: Expr) -> list[Expr]:
        unit = [T.Bind(b.load(stored[0], u * self.n + n if self.transposed else n * self.units + u))]
        return [*unit, self.zero(stored, n, u)] if self.zero_point else unit

    def zero(self, stored: Sequence[Buffer], n: Expr, u: Expr) -> Expr:
        """The stored value that stands for zero, as float32."""
        group = T.Bind(b.div(u, self.group_units))
        word = b.load(stored[2], n * self.zeros + b.div(group, self.per_unit))
        shift = tirx.Cast("uint32", b.mod(group, self.per_unit) * self.bits)
        return T.Bind(tirx.Cast("float32", (word >> shift) & b.u32((1 << self.bits) - 1)))

    def scale(self, stored: Sequence[Buffer], n: Expr, u: Expr) -> Expr | None:
        group, row = b.div(u, self.group_units), b.i32(0) if self.one_scale else n
        at = group * self.n + row if self.transposed else row * self.groups + group
        return T.Bind(b.to_float32(b.load(stored[1], at), self.scale_dtype))

    def place(self, e: int) -> tuple[int, int]:
        """(where the segment of the word that value e is taken from begins, the value's first bit in it)."""
        units_per_load = MANTISSA_BITS // self.bits
        return e // units_per_load * units_per_load * self.bits, e % units_per_load * self.bits

    def raw(self, unit: list[Expr], e: int) -> Expr:
        """Value e of a unit, without scale, over ``factor``: the bits go into a mantissa where they stand."""
        if self.kind != "group":
            return byte_value((unit[0] >> b.u32(e * self.bits)) & b.u32(0xFF), self.kind)
        start, inner = self.place(e)
        segment = unit[0] >> b.u32(start) if start else unit[0]
        mantissa = segment & b.u32(((1 << self.bits) - 1) << inner)
        value = b.bits(mantissa | b.u32(ONE_UNIT), "float32") - b.f32(float((1 << 23) + (self.max_int << inner)))
        return value - unit[1] * b.f32(2.0**inner) if self.zero_point else value

    def factor(self, e: int) -> float:
        return 0.5 ** self.place(e)[1] if self.kind == "group" else 1.0

    def input_of(self, u: Expr, e: Expr) -> tuple[Expr, Expr | None]:
        """(the input that value e of a unit belongs to, whether it is one and not padding)."""
        if self.group_units * self.per_unit == self.group_size:
            k = u * self.per_unit + e
            return k, None if self.groups * self.group_size == self.k else k < self.k
        place = b.mod(u, self.group_units) * self.per_unit + e
        k = b.div(u, self.group_units) * self.group_size + place
        return k, tirx.And(place < self.group_size, k < self.k)


Weight = Plain | Packed


def weight_of(stored: StoredWeight) -> Weight:
    """How the weight of a labelled operation is stored."""
    n, k, dtype = stored.n, stored.k, stored.dtype
    if stored.kind == "none":
        return Plain(n, k, dtype)
    max_int = 0 if stored.zero_point else stored.max_int
    return Packed(
        n, k, stored.kind, stored.layout == "KN", stored.bits, stored.group_size, stored.per_word,
        stored.words_per_group, max_int, stored.scale_dtype, stored.scale_per == "tensor",
        stored.zero_point,
    )  # fmt: skip


def values(weight: Weight, stored: Sequence[Buffer], n: Expr, u: Expr) -> list[Expr]:
    """All values of a unit, as float32."""
    unit, scale = weight.unit(stored, n, u), weight.scale(stored, n, u)
    result = []
    for e in range(weight.per_unit):
        value, factor = weight.raw(unit, e), weight.factor(e)
        value = value if factor == 1.0 else value * b.f32(factor)
        result.append(value if scale is None else value * scale)
    return result
