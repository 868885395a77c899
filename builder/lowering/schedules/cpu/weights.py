"""Weights as they are stored, and how kernels read them: as vectors of a dot product, and as panels.

Axes: N outputs, K inputs, L lanes. Packed weights are in packed_weights.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.packed_weights import OUTPUTS_PER_DOT, PANEL_DEPTH, Grouped, Transposed
from llm_build.lowering.schedules.cpu.vector import Arg, Buffer, Expr, Isa
from llm_build.lowering.schedules.ir import T
from llm_build.ops.weights import StoredWeight


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
        return min(PANEL_DEPTH, self.k)

    def prepare(self, x: Buffer, row: Expr) -> tuple[Buffer, ...]:
        """x in the order that ``dot`` reads it: the last vector starts early, with zeros where it overlaps."""
        lanes = self.lanes
        prepared = v.scratch(self.vectors * lanes)
        with v.loop(self.vectors) as step, v.loop(lanes) as lane:
            k = T.Bind(T.min(step * lanes, self.k - lanes) + lane)
            fresh = tirx.if_then_else(k >= step * lanes, v.load(x, row * self.k + k), tirx.const(0.0, "float32"))
            v.store(prepared, step * lanes + lane, fresh)
        return (prepared,)

    def dot(self, stored: tuple[Buffer, ...], prepared: tuple[Buffer, ...], n: Expr, step: Expr, acc: Buffer) -> None:
        """Add vector ``step`` of the products of outputs n .. n + OUTPUTS to ``acc``."""
        lanes = self.lanes
        start = T.Bind(T.min(step * lanes, self.k - lanes))
        x = T.Bind(v.load(prepared[0], step * lanes, lanes))
        for r in range(min(OUTPUTS_PER_DOT, self.n)):
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


Weight = Plain | Grouped | Transposed


def weight_of(stored: StoredWeight, isa: Isa) -> Weight | None:
    """How the weight is stored, or None if no kernel here reads it."""
    n, k, dtype = stored.n, stored.k, stored.dtype
    if stored.kind == "none":
        return Plain(n, k, dtype, isa)
    layout = Transposed if stored.layout == "KN" else Grouped
    packed = layout(
        n,
        k,
        stored.kind,
        stored.bits,
        stored.group_size,
        stored.per_word,
        stored.words_per_group,
        stored.max_int,
        stored.scale_dtype,
        stored.scale_per == "tensor",
        isa,
        stored.zero_point,
    )
    return packed if packed.lanes else None
