"""y = x @ weight.T (+ bias) (+ residual) on the CPU, the weight read as it is stored.

Few rows: every output is a dot product along the packed row (vectors of words, one shift and mask per value in a word,
the scale applied once per vector). Many rows: a panel of the weight, 2 vectors of outputs wide and BLOCK inputs deep,
is dequantized once and multiplied with all rows, ROWS x 2 vectors of sums in registers.

Axes: M rows, N outputs, K inputs, W words of a packed row, E values per word, L lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from builder.lowering.schedules.cpu import vector as v
from builder.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa

FEW = 3  # rows that are multiplied one by one
ROWS = 6  # rows of sums in registers
OUTPUTS = 4  # outputs that share the loads of x in a dot product
BLOCK = 128  # inputs of a panel, about
ROW_BLOCK = 240  # rows whose slice of x, BLOCK wide, a core keeps close (120 KiB)
PANELS = 8  # of one task, at most
BALANCE = 16  # tasks of a product, at least, if there are so many panels: for several threads


@dataclass(frozen=True, slots=True)
class Plain:
    """A weight (N, K) kept as it is. A vector covers L inputs."""

    n: int
    k: int
    dtype: str
    isa: Isa

    @property
    def args(self) -> list[Arg]:
        return [Arg("weight", (self.n, self.k), self.dtype)]

    @property
    def lanes(self) -> int:
        lanes = self.isa.lanes
        while lanes > self.k:
            lanes //= 2
        return lanes

    @property
    def vectors(self) -> int:
        return -(-self.k // self.lanes)

    @property
    def block(self) -> int:
        return min(BLOCK, self.k)

    def prepare(self, x: Buffer, row: Expr) -> tuple[Buffer, ...]:
        """x in the order that ``dot`` reads it: the last vector starts early, with zeros where it overlaps."""
        lanes = self.lanes
        ready = v.scratch(self.vectors * lanes)
        with v.loop(self.vectors) as step, v.loop(lanes) as lane:
            k = T.Bind(T.min(step * lanes, self.k - lanes) + lane)
            fresh = tirx.if_then_else(k >= step * lanes, v.load(x, row * self.k + k), tirx.const(0.0, "float32"))
            v.store(ready, step * lanes + lane, fresh)
        return (ready,)

    def dot(self, stored: tuple[Buffer, ...], ready: tuple[Buffer, ...], n: Expr, step: Expr, acc: Buffer) -> None:
        """Add vector ``step`` of the products of outputs n .. n + OUTPUTS to ``acc``."""
        lanes = self.lanes
        start = T.Bind(T.min(step * lanes, self.k - lanes))
        x = T.Bind(v.load(ready[0], step * lanes, lanes))
        for r in range(min(OUTPUTS, self.n)):
            raw = v.load(stored[0], (n + r) * self.k + start, lanes)
            weight = v.to_float32(raw, self.dtype, lanes, self.isa)
            v.store(acc, r * lanes, v.load(acc, r * lanes, lanes) + weight * x, lanes)

    def panel(
        self, stored: tuple[Buffer, ...], n: Expr, start: Expr, depth: Expr, out: Buffer, lanes: int, count: int
    ) -> None:
        """out[k, 0 .. count * lanes] = weight[n .., start + k].T for k < depth: squares are turned in registers, what
        is left of the depth is gathered."""
        width = lanes * count

        def read(raw: Expr) -> Expr:
            return T.Bind(v.to_float32(raw, self.dtype, lanes, self.isa))

        for part in range(0, width, lanes):
            whole = T.Bind(tirx.floordiv(depth, lanes))
            with v.loop(whole) as step:
                sources = [(n + part + r) * self.k + start + step * lanes for r in range(lanes)]
                rows = [read(v.load(stored[0], source, lanes)) for source in sources]
                for k, column in enumerate(v.transposed(rows)):
                    v.store(out, (step * lanes + k) * width + part, column, lanes)
            with v.loop(depth - whole * lanes) as rest:
                k = whole * lanes + rest
                column = read(v.gather(stored[0], (n + part) * self.k + start + k, self.k, lanes))
                v.store(out, k * width + part, column, lanes)


@dataclass(frozen=True, slots=True)
class Grouped:
    """A packed weight: ``words`` (N, W) and ``scales`` (N, groups). A vector covers L words."""

    n: int
    k: int
    bits: int
    group_size: int
    per_word: int
    group_words: int
    max_int: int
    dtype: str
    isa: Isa

    @property
    def groups(self) -> int:
        return -(-self.k // self.group_size)

    @property
    def words(self) -> int:
        return self.groups * self.group_words

    @property
    def args(self) -> list[Arg]:
        return [Arg("q_weight", (self.n, self.words), "uint32"), Arg("q_scale", (self.n, self.groups), self.dtype)]

    @property
    def lanes(self) -> int:
        """Words in a vector: whole groups, or a whole part of one; 0 if neither fits."""
        lanes = self.isa.lanes
        while lanes and (lanes > self.words or (lanes % self.group_words and self.group_words % lanes)):
            lanes //= 2
        return lanes

    @property
    def vectors(self) -> int:
        return -(-self.words // self.lanes)

    @property
    def block(self) -> int:
        return max(1, BLOCK // self.group_size) * self.group_size

    def prepare(self, x: Buffer, row: Expr) -> tuple[Buffer, ...]:
        """x turned so that value e of each word is a vector, and -max_int times the sum of x over each word.

        The last vector starts early, with zeros where it overlaps; so do inputs that only pad a group.
        """
        lanes, per_word = self.lanes, self.per_word
        turned, sums = v.scratch(self.vectors * per_word * lanes), v.scratch(self.vectors * lanes)
        padded = self.group_words * per_word != self.group_size
        with v.loop(self.vectors) as step, v.loop(lanes) as lane:
            word = T.Bind(T.min(step * lanes, self.words - lanes) + lane)
            x_sum = v.scratch(1)
            v.store(x_sum, 0, tirx.const(0.0, "float32"))
            for e in range(per_word):
                place = word % self.group_words * per_word + e
                k = T.Bind(word // self.group_words * self.group_size + place if padded else word * per_word + e)
                real = tirx.And(word >= step * lanes, k < self.k)
                if padded:
                    real = tirx.And(real, place < self.group_size)
                value = T.Bind(tirx.if_then_else(real, v.load(x, row * self.k + k), tirx.const(0.0, "float32")))
                v.store(turned, (step * per_word + e) * lanes + lane, value)
                v.store(x_sum, 0, v.load(x_sum, 0) + value)
            v.store(sums, step * lanes + lane, v.load(x_sum, 0) * tirx.const(-float(self.max_int), "float32"))
        return turned, sums

    def dot(self, stored: tuple[Buffer, ...], ready: tuple[Buffer, ...], n: Expr, step: Expr, acc: Buffer) -> None:
        """Add vector ``step`` of the products of outputs n .. n + OUTPUTS to ``acc``:
        scale * (sum of stored * x - max_int * sum of x), which is the sum of weight * x."""
        lanes, per_word = self.lanes, self.per_word
        turned, sums = ready
        start = T.Bind(T.min(step * lanes, self.words - lanes))
        outputs = range(min(OUTPUTS, self.n))
        words = [T.Bind(v.load(stored[0], (n + r) * self.words + start, lanes)) for r in outputs]
        parts = [v.load(sums, step * lanes, lanes) for _ in outputs]
        for e in range(per_word):
            x = T.Bind(v.load(turned, (step * per_word + e) * lanes, lanes))
            parts = [T.Bind(part + self.value(word, e, lanes) * x) for part, word in zip(parts, words, strict=True)]
        for r, part in zip(outputs, parts, strict=True):
            scale = self.scale_of_vector(stored[1], n + r, start)
            v.store(acc, r * lanes, v.load(acc, r * lanes, lanes) + part * scale, lanes)

    def value(self, word: Expr, e: int, lanes: int) -> Expr:
        """Value ``e`` of each word, as float32."""
        shifted = word if e == 0 else word >> v.splat(e * self.bits, lanes, "uint32")
        if (e + 1) * self.bits < 32:
            shifted = shifted & v.splat((1 << self.bits) - 1, lanes, "uint32")
        return v.cast(v.bits(shifted, "int32", lanes), "float32", lanes)

    def scale_of_vector(self, scales: Buffer, n: Expr, start: Expr) -> Expr:
        """The scale of each word's group."""
        lanes = self.lanes
        first = n * self.groups + tirx.floordiv(start, self.group_words)
        count = max(1, lanes // self.group_words)
        loaded = v.to_float32(v.load(scales, first, count), self.dtype, count, self.isa)
        if count == 1:
            return v.splat(loaded, lanes)
        if count == lanes:
            return loaded
        return v.shuffle(T.Bind(loaded), count, [lane // self.group_words for lane in range(lanes)])

    def panel(
        self, stored: tuple[Buffer, ...], n: Expr, start: Expr, depth: Expr, out: Buffer, lanes: int, count: int
    ) -> None:
        """out[k, 0 .. count * lanes] = weight[n .., start + k].T for k < depth rounded up to whole groups."""
        size, per_word = self.group_size, self.per_word
        with v.loop(tirx.floordiv(depth + (size - 1), size)) as step:
            group = T.Bind(tirx.floordiv(start, size) + step)
            for part in range(count):
                row = T.Bind(n + part * lanes)
                raw = v.gather(stored[1], row * self.groups + group, self.groups, lanes)
                scale = T.Bind(v.to_float32(raw, self.dtype, lanes, self.isa))
                with v.loop(self.group_words) as place:
                    at = row * self.words + group * self.group_words + place
                    word = T.Bind(v.gather(stored[0], at, self.words, lanes))
                    for e in range(per_word):
                        weight = (self.value(word, e, lanes) - v.splat(float(self.max_int), lanes)) * scale
                        self._store(out, step * size, place, e, part, lanes, count, weight)

    def _store(
        self, out: Buffer, base: Expr, place: Expr, e: int, part: int, lanes: int, count: int, weight: Expr
    ) -> None:
        inside = place * self.per_word + e
        at = (base + inside) * (count * lanes) + part * lanes
        if self.group_words * self.per_word == self.group_size:
            v.store(out, at, weight, lanes)
            return
        with v.when(inside < self.group_size):
            v.store(out, at, weight, lanes)


Weight = Plain | Grouped


def weight_of(fields: Mapping[str, Any], isa: Isa) -> Weight | None:
    """How the weight is stored, or None if no kernel here reads it."""
    n, k, dtype = fields["n"], fields["k"], fields["dtype"]
    if fields["kind"] == "none":
        return Plain(n, k, dtype, isa)
    packed = Grouped(
        n,
        k,
        fields["bits"],
        fields["group_size"],
        fields["per_word"],
        fields["words_per_group"],
        fields["max_int"],
        dtype,
        isa,
    )
    return packed if packed.lanes else None


def linear(fields: Mapping[str, Any], isa: Isa) -> tirx.PrimFunc | None:
    """The kernel of a "linear" operation (see builder/quant/relax.py for its arguments)."""
    weight = weight_of(fields, isa)
    if weight is None or weight.n < OUTPUTS:
        return None
    rows = v.size("rows")
    bias = [Arg("bias", (weight.n,), fields["dtype"])] if fields["bias"] else []
    residual = [Arg("residual", (rows, weight.n))] if fields["residual"] else []
    args = [Arg("x", (rows, weight.k)), *residual, *weight.args, *bias, Arg("y", (rows, weight.n))]

    def body(x: Buffer, *others: Buffer) -> None:
        rest = list(others)
        y, added = rest.pop(), rest.pop(0) if residual else None
        start = Start(weight.n, fields["dtype"], rest.pop() if bias else None, added, isa)
        stored = tuple(rest)
        v.either(
            rows <= tirx.const(FEW, "int64"),
            lambda: few_rows(weight, stored, x, start, y, rows),
            lambda: many_rows(weight, stored, x, start, y, rows),
        )

    return v.kernel(args, body)


@dataclass(frozen=True, slots=True)
class Start:
    """What an output is before the products are added: bias and residual, or zero."""

    n: int
    dtype: str
    bias: Buffer | None
    residual: Buffer | None
    isa: Isa

    def at(self, row: Expr, n: Expr, lanes: int) -> Expr:
        value = v.splat(0.0, lanes)
        if self.bias is not None:
            value = v.to_float32(v.load(self.bias, n, lanes), self.dtype, lanes, self.isa)
        if self.residual is not None:
            value = value + v.load(self.residual, row * self.n + n, lanes)
        return value


def few_rows(weight: Weight, stored: tuple[Buffer, ...], x: Buffer, start: Start, y: Buffer, rows: Expr) -> None:
    """Dot products, OUTPUTS at a time; the last ones overlap the ones before, writing the same values."""
    lanes, outputs = weight.lanes, OUTPUTS
    with v.loop(rows) as row:
        ready = weight.prepare(x, row)
        with v.loop(-(-weight.n // outputs), parallel=weight.n * weight.k >= v.PARALLEL_MACS) as block:
            n = T.Bind(T.min(block * outputs, weight.n - outputs))
            acc = v.scratch(outputs * lanes)
            for r in range(outputs):
                v.store(acc, r * lanes, v.splat(0.0, lanes), lanes)
            with v.loop(weight.vectors) as step:
                weight.dot(stored, ready, n, step, acc)
            for r in range(outputs):
                dot = v.total(v.load(acc, r * lanes, lanes), lanes)
                v.store(y, row * weight.n + n + r, start.at(row, n + r, 1) + dot)


@dataclass(frozen=True, slots=True)
class Panel:
    """Outputs n .. n + lanes * count of the weight, inputs first .. first + depth, dequantized and turned."""

    data: Buffer
    lanes: int
    count: int
    n: Expr
    first: Expr
    depth: Expr


def many_rows(weight: Weight, stored: tuple[Buffer, ...], x: Buffer, start: Start, y: Buffer, rows: Expr) -> None:
    """Panels of 2 vectors of outputs, several of them in a task, for ROW_BLOCK rows at a time.

    Sums are collected in y, block of inputs by block, so that the slice of x in use stays in the cache. What is left of
    N is one more panel that starts early; it comes after those that it overlaps, in the same task, from the start.
    """
    lanes, count = panel_shape(weight)
    width = lanes * count
    panels, rest = divmod(weight.n, width)
    together = max(1, min(PANELS, panels // BALANCE))
    tasks = -(-panels // together)
    with v.loop(tirx.floordiv(rows + (ROW_BLOCK - 1), ROW_BLOCK)) as block, v.loop(tasks, parallel=True) as task:
        low, high = T.Bind(block * ROW_BLOCK), T.Bind(T.min((block + 1) * ROW_BLOCK, rows))
        data = v.scratch(weight.block * width)
        with v.loop(1 + (task == tasks - 1).astype("int32") if rest else 1) as late:
            here = T.min(together, panels - task * together)
            with (
                v.loop(-(-weight.k // weight.block)) as step,
                v.loop(tirx.if_then_else(late > 0, 1, here) if rest else here) as place,
            ):
                regular = (task * together + place) * width
                n = T.Bind(tirx.if_then_else(late > 0, weight.n - width, regular) if rest else regular)
                first = T.Bind(step * weight.block)
                depth = T.Bind(T.min(weight.k - first, weight.block))
                weight.panel(stored, n, first, depth, data, lanes, count)
                panel = Panel(data, lanes, count, n, first, depth)
                with v.loop(tirx.floordiv(high - low + (ROWS - 1), ROWS)) as tile:
                    multiply(weight, panel, x, start, y, T.Bind(low + tile * ROWS), high)


def panel_shape(weight: Weight) -> tuple[int, int]:
    """(lanes, vectors) of a panel: 2 of the widest vectors that N has room for."""
    lanes = weight.isa.lanes
    while lanes > 1 and 2 * lanes > weight.n:
        lanes //= 2
    return lanes, 2


def multiply(weight: Weight, panel: Panel, x: Buffer, start: Start, y: Buffer, row: Expr, end: Expr) -> None:
    """Add ROWS rows of x times the panel to y; rows past the end repeat the last one and are not stored."""
    lanes, n = panel.lanes, panel.n
    width = lanes * panel.count
    acc = v.scratch(ROWS * width)
    places = [(r, part, r * width + part) for r in range(ROWS) for part in range(0, width, lanes)]
    real = [T.Bind(T.min(row + r, end - 1)) for r in range(ROWS)]

    def from_start() -> None:
        for r, part, at in places:
            v.store(acc, at, start.at(real[r], n + part, lanes), lanes)

    def from_sums() -> None:
        for r, part, at in places:
            v.store(acc, at, v.load(y, real[r] * weight.n + n + part, lanes), lanes)

    v.either(panel.first == 0, from_start, from_sums)
    with v.loop(panel.depth) as k:
        columns = {part: T.Bind(v.load(panel.data, k * width + part, lanes)) for part in range(0, width, lanes)}
        values = [T.Bind(v.load(x, real[r] * weight.k + panel.first + k)) for r in range(ROWS)]
        for r, part, at in places:
            v.store(acc, at, v.load(acc, at, lanes) + v.splat(values[r], lanes) * columns[part], lanes)
    for r in range(ROWS):
        with v.when(row + r < end):
            for part in range(0, width, lanes):
                v.store(y, real[r] * weight.n + n + part, v.load(acc, r * width + part, lanes), lanes)
