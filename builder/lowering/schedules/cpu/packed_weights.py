"""Packed weights on the CPU: how words are read, as vectors of a dot product and as panels.

Axes: N outputs, K inputs, W words of a packed row, E values per word, L lanes.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.ir import T

OUTPUTS_PER_DOT = 4  # outputs that share the loads of x in a dot product
PANEL_DEPTH = 128  # inputs of a panel, about
VECTORS_PER_DOT = 4  # vectors of outputs that share the loads of x where outputs lie beside each other
FLOAT8_SHIFT = {"e4m3": 4, "e5m2": 3}  # of the byte at the top of a word, to where a float32 has its exponent
FLOAT8_MASK = {"e4m3": 0x87F00000, "e5m2": 0x8FE00000}
FLOAT8_BIAS = {"e4m3": 120, "e5m2": 112}  # by how much the exponent is then too low
FLOAT8_HALF = 60  # of it: x takes 2^60, so that products with the smallest values are normal numbers


@dataclass(frozen=True, slots=True)
class Packed:
    """Words of ``per_word`` values and a scale per group: what both layouts share."""

    n: int
    k: int
    kind: str  # group | int8 | e4m3 | e5m2
    bits: int
    group_size: int
    per_word: int
    group_words: int
    max_int: int
    dtype: str  # of scales
    one_scale: bool  # of the whole matrix
    isa: Isa
    zero_point: bool = False

    @property
    def groups(self) -> int:
        return -(-self.k // self.group_size)

    @property
    def words(self) -> int:
        return self.groups * self.group_words

    @property
    def padded(self) -> bool:
        return self.group_words * self.per_word != self.group_size

    @property
    def zero_words(self) -> int:
        """Words of a row's zero points; 0 if it has none."""
        return -(-self.groups // self.per_word) if self.zero_point else 0

    @property
    def integers(self) -> bool:
        return self.kind in ("group", "int8")

    @property
    def middle(self) -> float:
        """What a zero weight is stored as."""
        return float(self.max_int) if self.kind == "group" else 0.0

    @property
    def scales(self) -> int:
        """Rows of scales."""
        return 1 if self.one_scale else self.n

    def scale_at(self, row: Expr, group: Expr) -> Expr:
        """Where the scale of a row's group is."""
        return group if self.one_scale else row * self.groups + group

    def value(self, word: Expr, e: int, lanes: int) -> Expr:
        """Value ``e`` of each word, as float32: an integer from 0 to 2 max_int, or an 8-bit float over 2^bias."""
        if not self.integers:
            return self._float8(word, e, lanes)
        if self.kind == "int8":
            top = v.bits(word, "int32", lanes)
            top = top << v.splat(24 - 8 * e, lanes, "int32") if e < 3 else top
            return v.cast(top >> v.splat(24, lanes, "int32"), "float32", lanes)
        shifted = word if e == 0 else word >> v.splat(e * self.bits, lanes, "uint32")
        if (e + 1) * self.bits < 32:
            shifted = shifted & v.splat((1 << self.bits) - 1, lanes, "uint32")
        return v.cast(v.bits(shifted, "int32", lanes), "float32", lanes)

    def _float8(self, word: Expr, e: int, lanes: int) -> Expr:
        """The byte goes to the top, and down again with its sign left behind: exponent and mantissa are in place."""
        byte = v.bits(word, "int32", lanes)
        if e < 3:
            byte = byte << v.splat(24 - 8 * e, lanes, "int32")
        byte = byte >> v.splat(FLOAT8_SHIFT[self.kind], lanes, "int32")
        byte = byte & v.splat(FLOAT8_MASK[self.kind] - (1 << 32), lanes, "int32")
        return v.bits(byte, "float32", lanes)

    def weight(self, word: Expr, e: int, scale: Expr, zero: Expr | None, lanes: int) -> Expr:
        """Weight ``e`` of each word; ``zero``: the zero points, if there are any."""
        value = self.value(word, e, lanes)
        if self.integers:
            zero = v.splat(self.middle, lanes) if zero is None and self.middle else zero
            return (value if zero is None else value - zero) * scale
        return value * v.splat(2.0 ** FLOAT8_BIAS[self.kind], lanes) * scale

    def store(self, out: Buffer, at: Expr, weight: Expr, lanes: int, inside: Expr | None) -> None:
        """out[at ..] = weight, unless its place ``inside`` the group is past the end: it fills the last word."""
        if inside is None:
            v.store(out, at, weight, lanes)
            return
        with v.when(inside < self.group_size):
            v.store(out, at, weight, lanes)

    def scaled(self, part: Expr, scale: Expr, lanes: int) -> Expr:
        """A sum of ``value`` * (x as ``unit`` makes it), times the scale."""
        if self.integers:
            return part * scale
        return part * v.splat(2.0 ** (FLOAT8_BIAS[self.kind] - FLOAT8_HALF), lanes) * scale

    def unit(self, x: Expr) -> Expr:
        return x if self.integers else x * tirx.const(2.0**FLOAT8_HALF, "float32")

    def input_of(self, word: Expr, e: int) -> tuple[Expr, Expr]:
        """(the input that value ``e`` of a row's word belongs to, whether it is one and not padding)."""
        place = word % self.group_words * self.per_word + e
        group = tirx.floordiv(word, self.group_words)
        k = T.Bind(group * self.group_size + place if self.padded else word * self.per_word + e)
        return k, tirx.And(k < self.k, place < self.group_size) if self.padded else k < self.k


@dataclass(frozen=True, slots=True)
class Grouped(Packed):
    """Layout NK: words (N, W) and scales (N, groups). A vector covers L words of a row."""

    @property
    def args(self) -> list[Arg]:
        zeros = [Arg("q_zero", (self.n, self.zero_words), "uint32")] if self.zero_point else []
        scales = Arg("q_scale", (self.scales, self.groups), self.dtype)
        return [Arg("q_weight", (self.n, self.words), "uint32"), scales, *zeros]

    @property
    def lanes(self) -> int:
        """Words in a vector: whole groups, or a whole part of one; 0 if neither fits."""
        lanes = self.isa.lanes
        while lanes and (lanes > self.words or not self._divides(lanes)):
            lanes //= 2
        return lanes

    def _divides(self, lanes: int) -> bool:
        count = max(1, lanes // self.group_words)  # groups in a vector; their zero points must lie in one word
        whole = not self.zero_point or not (self.groups % count or self.per_word % count)
        return self.groups == 1 or (whole and not (lanes % self.group_words and self.group_words % lanes))

    @property
    def vectors(self) -> int:
        return -(-self.words // self.lanes)

    @property
    def whole_row(self) -> bool:
        """One group, longer than a panel is deep."""
        return self.groups == 1 and self.group_size > PANEL_DEPTH

    @property
    def block(self) -> int:
        if self.whole_row:
            return PANEL_DEPTH // self.per_word * self.per_word
        return max(1, PANEL_DEPTH // self.group_size) * self.group_size

    def prepare(self, x: Buffer, row: Expr) -> tuple[Buffer, ...]:
        """x turned so that value e of each word is a vector, and -max_int (-1 if there are zero points) times the sum
        of x over each word.

        The last vector starts early, with zeros where it overlaps; so do inputs that only pad a group.
        """
        lanes, per_word = self.lanes, self.per_word
        turned, sums = v.scratch(self.vectors * per_word * lanes), v.scratch(self.vectors * lanes)
        with v.loop(self.vectors) as step, v.loop(lanes) as lane:
            word = T.Bind(T.min(step * lanes, self.words - lanes) + lane)
            x_sum = v.scratch(1)
            v.store(x_sum, 0, tirx.const(0.0, "float32"))
            for e in range(per_word):
                k, real = self.input_of(word, e)
                real = tirx.And(word >= step * lanes, real)
                value = T.Bind(tirx.if_then_else(real, v.load(x, row * self.k + k), tirx.const(0.0, "float32")))
                v.store(turned, (step * per_word + e) * lanes + lane, self.unit(value))
                v.store(x_sum, 0, v.load(x_sum, 0) + value)
            middle = -1.0 if self.zero_point else -self.middle
            v.store(sums, step * lanes + lane, v.load(x_sum, 0) * tirx.const(middle, "float32"))
        return turned, sums

    def dot(self, stored: tuple[Buffer, ...], prepared: tuple[Buffer, ...], n: Expr, step: Expr, acc: Buffer) -> None:
        """Add vector ``step`` of the products of outputs n .. n + OUTPUTS to ``acc``:
        scale * (sum of stored * x - max_int * sum of x), which is the sum of weight * x."""
        lanes, per_word = self.lanes, self.per_word
        turned, sums = prepared
        start = T.Bind(T.min(step * lanes, self.words - lanes))
        outputs = range(min(OUTPUTS_PER_DOT, self.n))
        words = [T.Bind(v.load(stored[0], (n + r) * self.words + start, lanes)) for r in outputs]
        parts = [v.load(sums, step * lanes, lanes) for _ in outputs]
        if self.zero_point:
            parts = [T.Bind(part * self.zero_of_vector(stored[2], n + r, start)) for r, part in enumerate(parts)]
        for e in range(per_word):
            x = T.Bind(v.load(turned, (step * per_word + e) * lanes, lanes))
            parts = [T.Bind(part + self.value(word, e, lanes) * x) for part, word in zip(parts, words, strict=True)]
        for r, part in zip(outputs, parts, strict=True):
            scale = self.scale_of_vector(stored[1], n + r, start)
            v.store(acc, r * lanes, v.load(acc, r * lanes, lanes) + self.scaled(part, scale, lanes), lanes)

    def scale_of_vector(self, scales: Buffer, n: Expr, start: Expr) -> Expr:
        """The scale of each word's group."""
        lanes = self.lanes
        first = self.scale_at(n, tirx.floordiv(start, self.group_words))
        count = max(1, lanes // self.group_words)
        loaded = v.to_float32(v.load(scales, first, count), self.dtype, count, self.isa)
        if count == 1:
            return v.splat(loaded, lanes)
        if count == lanes:
            return loaded
        return v.shuffle(T.Bind(loaded), count, [lane // self.group_words for lane in range(lanes)])

    def zero_of_vector(self, zeros: Buffer, n: Expr, start: Expr) -> Expr:
        """The zero point of each word's group, all out of one word of them."""
        lanes, count = self.lanes, max(1, self.lanes // self.group_words)
        first = T.Bind(tirx.floordiv(start, self.group_words))
        word = T.Bind(v.load(zeros, n * self.zero_words + tirx.floordiv(first, self.per_word)))
        if count == 1:
            return v.splat(T.Bind(self.zero_in(word, first, 1)), lanes)
        values = T.Bind(self.zero_in(word, first, count))
        if count == lanes:
            return values
        return v.shuffle(values, count, [lane // self.group_words for lane in range(lanes)])

    def zero_in(self, word: Expr, group: Expr, count: int) -> Expr:
        """Zero points of ``count`` groups from ``group`` on, out of the word that holds them."""
        place = T.Bind(tirx.Cast("uint32", tirx.floormod(group, self.per_word) * self.bits))
        places = place if count == 1 else tirx.Ramp(place, tirx.const(self.bits, "uint32"), count)
        stored = (v.splat(word, count) >> places) & v.splat((1 << self.bits) - 1, count, "uint32")
        return v.cast(v.bits(stored, "int32", count), "float32", count)

    def zeros_of_rows(self, zeros: Buffer, row: Expr, group: Expr, lanes: int) -> Expr:
        """The zero points of one group in ``lanes`` rows."""
        at = row * self.zero_words + tirx.floordiv(group, self.per_word)
        words = v.load(zeros, at) if lanes == 1 else v.gather(zeros, at, self.zero_words, lanes)
        place = T.Bind(tirx.Cast("uint32", tirx.floormod(group, self.per_word) * self.bits))
        stored = (words >> v.splat(place, lanes)) & v.splat((1 << self.bits) - 1, lanes, "uint32")
        return v.cast(v.bits(stored, "int32", lanes), "float32", lanes)

    def scale_of_rows(self, scales: Buffer, row: Expr, group: Expr, lanes: int) -> Expr:
        """The scales of a group in rows row .. row + lanes."""
        if self.one_scale:
            return v.splat(v.to_float32(v.load(scales, group), self.dtype, 1, self.isa), lanes)
        raw = v.gather(scales, row * self.groups + group, self.groups, lanes)
        return v.to_float32(raw, self.dtype, lanes, self.isa)

    def panel(
        self, stored: tuple[Buffer, ...], n: Expr, start: Expr, depth: Expr, out: Buffer, lanes: int, count: int
    ) -> None:
        """out[k, 0 .. count * lanes] = weight[n .., start + k].T for k < depth rounded up to whole groups."""
        whole = self.whole_row
        size, places = (self.per_word, 1) if whole else (self.group_size, self.group_words)
        with v.loop(tirx.floordiv(depth + (size - 1), size)) as step:
            first = T.Bind(tirx.floordiv(start, size) + step)  # word of the row, or group
            group = tirx.const(0, "int64") if whole else first
            for part in range(count):
                row = T.Bind(n + part * lanes)
                scale = T.Bind(self.scale_of_rows(stored[1], row, group, lanes))
                zero = T.Bind(self.zeros_of_rows(stored[2], row, group, lanes)) if self.zero_point else None
                with v.loop(places) as place:
                    at = row * self.words + first * places + place
                    word = T.Bind(v.gather(stored[0], at, self.words, lanes))
                    for e in range(self.per_word):
                        inside = place * self.per_word + e
                        target = (step * size + inside) * (count * lanes) + part * lanes
                        weight = self.weight(word, e, scale, zero, lanes)
                        self.store(out, target, weight, lanes, inside if self.padded and not whole else None)


@dataclass(frozen=True, slots=True)
class Transposed(Packed):
    """Layout KN: words (W, N) and scales (groups, N). A vector covers L outputs."""

    @property
    def args(self) -> list[Arg]:
        return [Arg("q_weight", (self.words, self.n), "uint32"), Arg("q_scale", (self.groups, self.n), self.dtype)]

    @property
    def lanes(self) -> int:
        lanes = self.isa.lanes
        while lanes > 1 and VECTORS_PER_DOT * lanes > self.n:
            lanes //= 2
        return lanes

    @property
    def block(self) -> int:
        return max(1, PANEL_DEPTH // self.group_size) * self.group_size

    def prepare(self, x: Buffer, row: Expr) -> tuple[Buffer, ...]:
        """x by words, with zeros where they are padding, and -max_int times its sum over each group."""
        per_word = self.per_word
        slots, sums = v.scratch(self.words * per_word), v.scratch(self.groups)
        with v.loop(self.groups) as group:
            v.store(sums, group, tirx.const(0.0, "float32"))
            with v.loop(self.group_words) as place:
                word = T.Bind(group * self.group_words + place)
                for e in range(per_word):
                    k, real = self.input_of(word, e)
                    value = T.Bind(tirx.if_then_else(real, v.load(x, row * self.k + k), tirx.const(0.0, "float32")))
                    v.store(slots, word * per_word + e, self.unit(value))
                    v.store(sums, group, v.load(sums, group) - value * tirx.const(float(self.max_int), "float32"))
        return slots, sums

    def dot(self, stored: tuple[Buffer, ...], prepared: tuple[Buffer, ...], n: Expr, group: Expr, acc: Buffer) -> None:
        """Add the products of one group with outputs n .. n + STRIPS * lanes to ``acc``."""
        lanes, vectors_of_dot = self.lanes, range(VECTORS_PER_DOT)
        part = v.scratch(VECTORS_PER_DOT * lanes)
        for strip in vectors_of_dot:
            v.store(part, strip * lanes, v.splat(v.load(prepared[1], group), lanes), lanes)
        with v.loop(self.group_words) as place:
            word = T.Bind(group * self.group_words + place)
            words = [T.Bind(v.load(stored[0], word * self.n + n + strip * lanes, lanes)) for strip in vectors_of_dot]
            sums = [v.load(part, strip * lanes, lanes) for strip in vectors_of_dot]
            for e in range(self.per_word):
                x = T.Bind(v.splat(T.Bind(v.load(prepared[0], word * self.per_word + e)), lanes))
                sums = [T.Bind(sums[strip] + self.value(words[strip], e, lanes) * x) for strip in vectors_of_dot]
            for strip in vectors_of_dot:
                v.store(part, strip * lanes, sums[strip], lanes)
        for strip in vectors_of_dot:
            raw = v.load(stored[1], group * self.n + n + strip * lanes, lanes)
            product = self.scaled(
                v.load(part, strip * lanes, lanes), v.to_float32(raw, self.dtype, lanes, self.isa), lanes
            )
            v.store(acc, strip * lanes, v.load(acc, strip * lanes, lanes) + product, lanes)

    def panel(
        self, stored: tuple[Buffer, ...], n: Expr, start: Expr, depth: Expr, out: Buffer, lanes: int, count: int
    ) -> None:
        """out[k, 0 .. count * lanes] = weight[n .., start + k].T for k < depth rounded up to whole groups."""
        size = self.group_size
        with v.loop(tirx.floordiv(depth + (size - 1), size)) as step:
            group = T.Bind(tirx.floordiv(start, size) + step)
            for part in range(0, count * lanes, lanes):
                raw = v.load(stored[1], group * self.n + n + part, lanes)
                scale = T.Bind(v.to_float32(raw, self.dtype, lanes, self.isa))
                with v.loop(self.group_words) as place:
                    at = (group * self.group_words + place) * self.n + n + part
                    word = T.Bind(v.load(stored[0], at, lanes))
                    for e in range(self.per_word):
                        inside = place * self.per_word + e
                        target = (step * size + inside) * (count * lanes) + part
                        weight = self.weight(word, e, scale, None, lanes)
                        self.store(out, target, weight, lanes, inside if self.padded else None)
