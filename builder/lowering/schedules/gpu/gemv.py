"""A few rows times a weight on a GPU: each row by itself, the weight read once, as it is stored.

LANES threads go along the weight's rows of a few outputs; x is in shared memory. A thread has several loads of the
weight in flight: the first of them before it waits for x, and a next one whenever one is used up. Sums go through
shuffles or shared memory. Where outputs lie beside each other (layout KN) the lanes are outputs, and groups of threads
share the inputs.

Axes: M rows, N outputs, K inputs, U units of a row, E values of a unit (see weights.py). A vector is what a thread
loads of a row at a time: ``units_per_load`` units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import tirx

from llm_build.lowering.choices import choose
from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.weights import Fragment, Weight
from llm_build.lowering.schedules.ir import T

LANES = 32
BYTES_IN_FLIGHT = (
    176  # of an output's row, by a thread: 11 loads of 16 bytes, so that rows of 5,504 and 11,008 fit well
)
PACKED_BYTES_IN_FLIGHT = 128  # as words have scales
UNITS_IN_FLIGHT = 4  # units that are asked for together where outputs lie beside each other
SMEM_UNITS = 512  # whose x is in shared memory at a time there, at most
MANY_OUTPUTS = 16384  # of which a thread takes four, if they are packed: there is more to do for x than for the weight
FEW_OUTPUTS = 2047  # of which it takes one
X_LOADS_IN_FLIGHT = 8  # fours of x that a thread asks for together
UNROLLED_CHUNKS = 2  # chunks of a row that are written out one after the other


@dataclass(frozen=True, slots=True)
class Inputs:
    """x (M, K) float32, or what reads another form of it as that (rounded_inputs.Codes)."""

    x: Buffer
    k: int

    @property
    def plain(self) -> bool:
        """Whether four inputs are one load."""
        return True

    def at(self, row: Expr, k: Expr) -> Expr:
        return b.load(self.x, row * self.k + k)

    def four(self, row: Expr, k: Expr) -> list[Expr]:
        """Inputs k .. k + 4; k is a multiple of 4."""
        return b.fetch(self.x, row * self.k + k, 4, "float32")


Row = Callable[[Expr], tuple[Inputs, Expr, Expr]]  # row of the result -> x, its row, the first row of the weight
EpilogueAt = Callable[[Expr, Expr], Callable[..., Expr]]  # (row, n): reads what it needs -> product(s) to the result


class Sender(Protocol):
    """Sends results to the GPUs of a library of several ranks, two at a time, as they are made (peers.py)."""

    @property
    def ranks(self) -> int: ...

    def next_sum(self) -> Expr:
        """The number of the sum that comes next; known when the kernels before are done."""

    def send(self, ahead: Expr, pair: Expr, values: Sequence[Expr], sum_index: Expr) -> None:
        """Two results to the GPU that is ``ahead`` of this one (0: itself)."""


@dataclass(frozen=True, slots=True)
class Results:
    """y (rows, outputs): what ``epilogue`` makes of the products of x's rows with ``outputs`` rows of the weight. With
    several ``rows_per_output``, an output has a row in each of as many parts of the weight, and ``epilogue`` gets a
    product of each. ``sender``: what sends all results to other GPUs, if anything does."""

    y: Buffer
    outputs: int
    epilogue: EpilogueAt
    rows_per_output: int = 1
    sender: Sender | None = None

    def store(self, row: Expr, n: Expr, value: Expr) -> None:
        b.store(self.y, row * self.outputs + n, value)


def multiply_each_row(
    traits: GpuTraits, weight: Weight, stored: Sequence[Buffer], rows: Expr, row_of: Row, results: Results
) -> None:
    """Each row by itself."""
    if weight.transposed:
        assert results.rows_per_output == 1, "parts of a weight are not beside each other"
        gemv_n_parallel(traits, weight, stored, rows, row_of, results)
    else:
        gemv_k_parallel(traits, weight, stored, rows, row_of, results)


def can_send(weight: Weight, outputs: int) -> bool:
    """Whether a group of threads has two results that lie beside each other."""
    return not weight.transposed and outputs % 2 == 0 and _outputs_per_thread(weight, outputs, 1) == 2


def planes(weight: Weight) -> int:
    """x lies in shared memory in planes of four values per unit, so that threads read from different banks."""
    return -(-weight.per_unit // 4)


def is_regular(weight: Weight, x: Inputs) -> bool:
    """Whether four inputs at a time can be read as they lie."""
    return weight.per_unit % 4 == 0 and weight.units * weight.per_unit == weight.k and x.plain


@dataclass(frozen=True, slots=True)
class GemvTiling:
    """The way along a row: ``chunks`` of ``held`` turns, and x in shared memory for ``staged`` chunks at a time."""

    vectors: int
    chunks: int
    chunks_per_stage: int

    @property
    def stages(self) -> int:
        return -(-self.chunks // self.chunks_per_stage)


def _tiling_of(weight: Weight, smem_values: int) -> GemvTiling:
    """``smem_values``: of x, at most. Chunks and stages are few, and of equal size."""
    vector = LANES * weight.units_per_load
    vectors, values = -(-weight.units // vector), vector * 4 * planes(weight)
    most = (BYTES_IN_FLIGHT if weight.plain else PACKED_BYTES_IN_FLIGHT) // weight.bytes_per_load
    most = max(1, min(most, smem_values // values))
    chunks = -(-vectors // most)
    per_chunk = -(-vectors // chunks)
    stages = -(-chunks // max(1, smem_values // (per_chunk * values)))
    return GemvTiling(per_chunk, chunks, -(-chunks // stages))


def _outputs_per_thread(weight: Weight, outputs: int, rows_per_output: int) -> int:
    """How many outputs a thread takes, so that there are blocks enough and little else to do than reading."""
    if rows_per_output > 1 or outputs <= FEW_OUTPUTS:
        return 1
    return 2 if weight.plain or outputs < MANY_OUTPUTS else 4


@dataclass(frozen=True, slots=True)
class _StagedInputs:
    """x of ``count`` units in shared memory, in an order in which threads that load ``units_per_load`` units each read
    beside each other: (place in a thread's units, plane of four values, thread's vector, value)."""

    smem: Buffer
    count: int
    units_per_load: int
    planes: int

    def at(self, vector: Expr, place: Expr | int, e: int) -> Expr:
        return ((place * self.planes + e // 4) * (self.count // self.units_per_load) + vector) * 4 + e % 4


def _stage(
    weight: Weight, x: Inputs, row: Expr, first: Expr | int, staged: _StagedInputs, thread: Expr, threads: int
) -> None:
    """x of the units from ``first``, times each value's factor; zero where a slot is padding or past the end."""
    if is_regular(weight, x):
        _stage_regular(weight, x, row, first, staged, thread, threads)
        return

    def unit(place: Expr) -> None:
        u = T.Bind(first + place)
        vector, inside = T.Bind(b.div(place, staged.units_per_load)), T.Bind(b.mod(place, staged.units_per_load))
        for e in range(weight.per_unit):
            k, real = weight.input_of(u, b.i32(e))
            there = u < weight.units if real is None else tirx.And(u < weight.units, real)
            value = tirx.if_then_else(there, x.at(row, k), b.f32(0.0))
            b.store(staged.smem, staged.at(vector, inside, e), _scaled(value, weight.factor(e)))

    b.strided(thread, threads, staged.count, unit)


def _stage_regular(
    weight: Weight, x: Inputs, row: Expr, first: Expr | int, staged: _StagedInputs, thread: Expr, threads: int
) -> None:
    """A few units at a time: all of them are asked for before the first is put down."""
    batch = max(1, X_LOADS_IN_FLIGHT // planes(weight))
    steps = -(-staged.count // threads)
    for start in range(0, steps, batch):
        places = [T.Bind(thread + step * threads) for step in range(start, min(start + batch, steps))]
        units = [T.Bind(T.min(first + place, weight.units - 1)) for place in places]
        loaded = [[x.four(row, u * weight.per_unit + e) for e in range(0, weight.per_unit, 4)] for u in units]
        for place, planes_of_x in zip(places, loaded, strict=True):

            def put(place: Expr = place, planes_of_x: list[list[Expr]] = planes_of_x) -> None:
                vector, inside = (
                    T.Bind(b.div(place, staged.units_per_load)),
                    T.Bind(b.mod(place, staged.units_per_load)),
                )
                for e in range(weight.per_unit):
                    value = tirx.Select(first + place < weight.units, planes_of_x[e // 4][e % 4], b.f32(0.0))
                    b.store(staged.smem, staged.at(vector, inside, e), _scaled(value, weight.factor(e)))

            b.guarded(None if not staged.count % threads else place < staged.count, put)


def _scaled(value: Expr, factor: float) -> Expr:
    return value if factor == 1.0 else value * b.f32(factor)


def gemv_k_parallel(
    traits: GpuTraits, weight: Weight, stored: Sequence[Buffer], rows: Expr, row_of: Row, results: Results
) -> None:
    """LANES threads along the rows of ``per_thread`` outputs."""
    outputs, rows_per_output = results.outputs, results.rows_per_output
    per_thread, groups, tiling = (
        _outputs_per_thread(weight, outputs, rows_per_output),
        traits.threads // LANES,
        _tiling_of(weight, traits.smem_values),
    )
    vector_units = LANES * weight.units_per_load
    choose(
        "GEMV, K across threads", "few rows; inputs of an output lie beside each other", threads=traits.threads,
        threads_per_output=LANES, outputs_per_group=per_thread, loads=tiling.vectors, chunks=tiling.chunks,
    )  # fmt: skip
    count = tiling.chunks_per_stage * tiling.vectors * vector_units
    with b.launch(traits.threads, -(-outputs // (groups * per_thread)), rows) as (block, row, thread):
        staged = _StagedInputs(b.shared(count * 4 * planes(weight)), count, weight.units_per_load, planes(weight))
        lane, group = T.Bind(b.mod(thread, LANES)), T.Bind(b.div(thread, LANES))
        x, x_row, start = row_of(row)
        first_n = T.Bind((block * groups + group) * per_thread)
        ns = [T.Bind(T.min(first_n + r, outputs - 1)) for r in range(per_thread)]
        places = [T.Bind(start + n + part * outputs) for n in ns for part in range(rows_per_output)]
        fragments = [[weight.fragment() for _ in places] for _ in range(tiling.vectors)]
        totals = b.local(len(places))
        for r in range(len(places)):
            b.store(totals, r, b.f32(0.0))

        def prefetch(chunk: Expr | int, vector: int) -> None:
            unit = ((chunk * tiling.vectors + vector) * LANES + lane) * weight.units_per_load
            u = T.Bind(T.min(unit, weight.units - weight.units_per_load))
            for place, fragment in zip(places, fragments[vector], strict=True):
                weight.load_fragment(fragment, stored, place, u, traits.load_bytes)

        def multiply(chunk: Expr | int, before: Expr | int) -> None:
            for vector in range(tiling.vectors):
                at = T.Bind(((chunk - before) * tiling.vectors + vector) * LANES + lane)
                _dot(weight, fragments[vector], staged, at, totals)
                b.guarded(chunk + 1 < tiling.chunks, lambda vector=vector: prefetch(chunk + 1, vector))  # type: ignore[misc]

        def run_stage(number: Expr | int) -> None:
            if tiling.stages > 1:
                b.barrier()
            _stage(weight, x, x_row, number * count, staged, thread, traits.threads)
            b.barrier()
            first = number * tiling.chunks_per_stage
            b.repeat(tiling.chunks_per_stage, UNROLLED_CHUNKS, lambda chunk: multiply(first + chunk, first))

        for vector in range(tiling.vectors):
            prefetch(0, vector)
        traits.wait()
        epilogues = [results.epilogue(row, n) for n in ns] if traits.shuffles else []
        sum_index = results.sender.next_sum() if results.sender else None
        b.repeat(tiling.stages, 1, run_stage)
        if traits.shuffles:
            _reduce_by_shuffles(totals, lane, row, first_n, epilogues, results, sum_index)
        else:
            _reduce_by_smem(
                traits, totals, per_thread, thread, lambda i: block * (groups * per_thread) + i, row, results
            )


def _dot(weight: Weight, fragments: Sequence[Fragment], staged: _StagedInputs, vector: Expr, totals: Buffer) -> None:
    """Add the products of a turn of each row to its total."""
    parts = [b.f32(0.0) for _ in fragments]
    units = [weight.units_of(fragment) for fragment in fragments]
    for place in range(len(units[0])):
        for plane in range(staged.planes):
            xs = b.fetch(staged.smem, staged.at(vector, place, plane * 4), 4, "float32")
            for e in range(plane * 4, min(plane * 4 + 4, weight.per_unit)):
                parts = [
                    T.Bind(part + weight.raw(unit[place], e) * xs[e % 4])
                    for part, unit in zip(parts, units, strict=True)
                ]
    for r, (part, fragment) in enumerate(zip(parts, fragments, strict=True)):
        value = part if fragment.scale is None else part * b.load(fragment.scale, 0)
        b.store(totals, r, b.load(totals, r) + value)


def _reduce_by_shuffles(
    totals: Buffer, lane: Expr, row: Expr, first_n: Expr, epilogues: Sequence[Callable[..., Expr]], results: Results,
    sum_index: Expr | None,
) -> None:  # fmt: skip
    """The lanes' sums of each row, in all lanes; one of them puts down an output."""
    values = []
    for r, epilogue in enumerate(epilogues):
        places = range(r * results.rows_per_output, (r + 1) * results.rows_per_output)
        values.append(T.Bind(epilogue(*(b.warp_sum(b.load(totals, place), LANES) for place in places))))
    if results.sender is not None:
        with b.when(tirx.And(lane < results.sender.ranks, first_n < results.outputs)):
            results.sender.send(lane, b.div(first_n, 2), values, sum_index)
    for r, value in enumerate(values):
        with b.when(tirx.And(tirx.EQ(lane, r), first_n + r < results.outputs)):
            results.store(row, first_n + r, value)


def _reduce_by_smem(
    traits: GpuTraits,
    totals: Buffer,
    per_thread: int,
    thread: Expr,
    n_of: Callable[[Expr], Expr],
    row: Expr,
    results: Results,
) -> None:
    """The lanes' sums of each row, by one thread an output; it starts at its own place, for the banks' sake."""
    threads, rows_per_output = traits.threads, results.rows_per_output
    sums = b.shared(threads * per_thread * rows_per_output)
    for r in range(per_thread * rows_per_output):
        b.store(sums, r * threads + thread, b.load(totals, r))
    b.barrier()
    with b.when(thread < threads // LANES * per_thread):
        own, group = T.Bind(b.mod(thread, per_thread)), T.Bind(b.div(thread, per_thread))
        sums_of = [b.local(1) for _ in range(rows_per_output)]
        for part, total in enumerate(sums_of):
            base = T.Bind((own * rows_per_output + part) * threads + group * LANES)
            b.store(total, 0, b.f32(0.0))
            with b.loop(LANES) as lane:
                b.store(total, 0, b.load(total, 0) + b.load(sums, base + b.mod(lane + group, LANES)))
        n = T.Bind(n_of(thread))
        with b.when(n < results.outputs):
            results.store(row, n, results.epilogue(row, n)(*(b.load(total, 0) for total in sums_of)))


def gemv_n_parallel(
    traits: GpuTraits, weight: Weight, stored: Sequence[Buffer], rows: Expr, row_of: Row, results: Results
) -> None:
    """LANES outputs beside each other; the groups of threads take turns along the inputs."""
    outputs, groups, count = results.outputs, traits.threads // LANES, _units_per_chunk(weight, traits.smem_values)
    choose(
        "GEMV, N across threads", "few rows; outputs lie beside each other", threads=traits.threads,
        outputs_per_block=LANES, groups=groups, units=count,
    )  # fmt: skip
    with b.launch(traits.threads, b.ceil_div(outputs, LANES), rows) as (block, row, thread):
        staged = _StagedInputs(b.shared(count * 4 * planes(weight)), count, 1, planes(weight))
        sums, totals = b.shared(traits.threads), b.local(1)
        lane, group = T.Bind(b.mod(thread, LANES)), T.Bind(b.div(thread, LANES))
        x, x_row, start = row_of(row)
        n = T.Bind(block * LANES + lane)
        place = T.Bind(start + T.min(n, outputs - 1))
        traits.wait()
        b.store(totals, 0, b.f32(0.0))
        with b.loop(b.ceil_div(weight.units, count)) as chunk:
            b.barrier()
            _stage(weight, x, x_row, T.Bind(chunk * count), staged, thread, traits.threads)
            b.barrier()
            with b.loop(count // (groups * UNITS_IN_FLIGHT)) as step:
                vectors = [T.Bind((step * UNITS_IN_FLIGHT + i) * groups + group) for i in range(UNITS_IN_FLIGHT)]
                fragments = [weight.fragment() for _ in vectors]
                for vector, fragment in zip(vectors, fragments, strict=True):
                    unit = T.Bind(T.min(chunk * count + vector, weight.units - 1))
                    weight.load_fragment(fragment, stored, place, unit, traits.load_bytes)
                for vector, fragment in zip(vectors, fragments, strict=True):
                    _dot(weight, [fragment], staged, vector, totals)
        b.store(sums, thread, b.load(totals, 0))
        b.barrier()
        with b.when(tirx.And(thread < LANES, n < outputs)):
            total = b.reduce([b.load(sums, group * LANES + lane) for group in range(groups)], b.add)
            results.store(row, n, results.epilogue(row, n)(total))


def _units_per_chunk(weight: Weight, smem_values: int) -> int:
    """Units whose x is in shared memory at a time, in whole rounds of the groups: few chunks of equal size."""
    most = max(1, min(smem_values // (4 * planes(weight)), SMEM_UNITS) // LANES)
    chunks = b.ceil_div(weight.units, most * LANES)
    return int(b.ceil_div(b.ceil_div(weight.units, chunks), LANES)) * LANES
