"""What GPU kernels are written with: flat buffers, blocks of threads with shared memory, elementary functions.

Kernels are built statement by statement with TVM's IRBuilder: Python loops are unrolled code, ``loop`` stays a loop,
``launch`` starts blocks on the device; a function may launch several times, with scratch memory between. All indices
are int32, and nothing is asked of a device but threads, shared memory and a barrier: no shuffles, no block index z, no
64-bit integers, so that one set of kernels serves CUDA, WebGPU, Metal and OpenCL. A barrier stands only where all
threads of a block meet: conditions around it hang on block indices, arguments and tensors that the kernel reads only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from tvm import tirx

from llm_build.lowering.schedules import function
from llm_build.lowering.schedules.ir import IRBuilder, T

Arg = function.Arg
Scalar = function.Scalar
Expr = Any
Buffer = Any

MINUS_INFINITY = -1e30  # finite, so that no difference of two of them is NaN
LOG2_E = math.log2(math.e)
THREADS = 256  # of a block
SHARED_BYTES = 32 << 10  # of a block
SMEM_VALUES = 4096  # of an input row; the rest of SHARED_BYTES is for sums
ROWS_PER_THREAD = 4  # of a large product: what every GPU has registers for


@dataclass(frozen=True, slots=True)
class GpuTraits:
    """What kernels ask of a GPU.

    ``threads`` of a block (a power of two, 64 to 256) and its ``shared_bytes`` of memory. ``rows_per_thread``: of a
    tile of a large product; more than ROWS_PER_THREAD need more registers, and another kernel. ``smem_values``: of an
    input row in shared memory, at most. ``load_bytes``: of one load of 16-bit numbers. ``shuffles``: whether the
    threads of a warp can read each other's registers. ``tensor_cores``: whether kernels may call functions whose
    products are NVIDIA's mma.sync of 16-bit numbers; ``wgmma``: also wgmma, which sm_90a alone has.
    ``tensor_products``: what multiplies many rows by it (schedules/gpu/tensor_products.py).

    With programmatic dependent launch (backends/dependent_launch.py) the device functions ``pdl_wait``, which waits for
    the kernel before, ``pdl_trigger``, which lets the next one start, and ``pdl_off``, which says that this kernel is
    launched without it; "" where there is none.
    """

    threads: int
    shared_bytes: int
    rows_per_thread: int = ROWS_PER_THREAD
    pdl_wait: str = ""
    pdl_trigger: str = ""
    pdl_off: str = ""
    smem_values: int = SMEM_VALUES
    load_bytes: int = 8
    shuffles: bool = False
    tensor_cores: bool = False
    wgmma: bool = False
    tensor_products: ModuleType | None = None

    def wait(self) -> None:
        """From here on a kernel reads what others wrote."""
        if self.pdl_wait:
            T.evaluate(tirx.call_extern("int32", self.pdl_wait))

    def trigger_next(self) -> None:
        """The next kernel may start from here on, and not from the start of this one."""
        if self.pdl_trigger:
            T.evaluate(tirx.call_extern("int32", self.pdl_trigger))

    def opt_out_of_pdl(self) -> None:
        """This kernel starts when the one before is done."""
        if self.pdl_off:
            T.evaluate(tirx.call_extern("int32", self.pdl_off))


def kernel(args: Sequence[Arg | Scalar], body: Callable[..., None]) -> tirx.PrimFunc:
    """A function of ``args``; ``body`` gets each tensor as a flat buffer (row-major) and each scalar as a variable."""
    return function.function(args, _match, _flat, body)


def size(name: str) -> tirx.Var:
    """A symbolic extent."""
    return tirx.Var(name, "int32")


def _match(arg: Arg | Scalar, handle: Any) -> Any:
    if isinstance(arg, Scalar):
        return handle
    offset = tirx.Var(f"{arg.name}_offset", "int32") if arg.offset else None
    buffer = T.match_buffer(handle, arg.shape, arg.dtype, elem_offset=offset)
    return _named(arg.name, buffer)  # WGSL refuses what TVM calls a nameless one


def _flat(arg: Arg | Scalar, buffer: Any) -> Any:
    if isinstance(arg, Scalar):
        return tirx.Cast("int32", buffer) if arg.dtype == "int64" else buffer
    count: Any = 1
    for extent in arg.shape:
        count = count * extent
    dtype = "uint16" if arg.dtype == "bfloat16" else arg.dtype
    return _named(arg.name, T.decl_buffer((count,), dtype, data=buffer.data, elem_offset=buffer.elem_offset))


@contextmanager
def launch(threads: int, blocks: Expr, more: Expr | None = None) -> Iterator[tuple[Expr, Expr, Expr]]:
    """Blocks of threads on the device: (block, second block index, thread)."""
    with (
        T.launch_thread("blockIdx.x", _extent_of(blocks)) as block,
        T.launch_thread("blockIdx.y", _extent_of(more)) as second,
        T.launch_thread("threadIdx.x", threads) as thread,
    ):
        yield block, second, thread


def _extent_of(extent: Expr | None) -> Expr:
    return tirx.const(1 if extent is None else extent, "int32") if isinstance(extent, int | None) else extent


def for_each(traits: GpuTraits, count: Expr, body: Callable[[Expr], None]) -> None:
    """body(index) for 0 <= index < count, a thread each."""
    count = _extent_of(count)
    with launch(traits.threads, ceil_div(count, traits.threads)) as (block, _, thread):
        index = block * traits.threads + thread
        with when(index < count):
            body(index)


def ceil_div(count: Expr, step: int) -> Expr:
    """How many steps cover ``count``."""
    return -(-count // step) if isinstance(count, int) else div(count + (step - 1), step)


def _named(name: str, buffer: Buffer) -> Buffer:
    IRBuilder.name(name, buffer)
    return buffer


def shared(count: int, dtype: str = "float32") -> Buffer:
    """Memory of the running block."""
    return _named("block_memory", T.alloc_buffer((count,), dtype, scope="shared"))


def local(count: int, dtype: str = "float32") -> Buffer:
    """Memory of the running thread: registers, as long as it is only indexed by constants. It cannot be named so:
    "private" is a keyword of C++ and of OpenCL C."""
    return _named("own", T.alloc_buffer((count,), dtype, scope="local"))


def materialize(value: Expr, dtype: str = "int32") -> Expr:
    """A number that is computed once: what TVM may compute again, it does."""
    memory = local(1, dtype)
    store(memory, 0, value)
    return T.Bind(load(memory, 0))


def scratch(count: Expr, dtype: str = "float32") -> Buffer:
    """Memory of the device between two launches of one function."""
    return _named("device_memory", T.alloc_buffer((count,), dtype))


def barrier() -> None:
    """Every thread of the block is here, and sees what the others wrote to shared memory."""
    T.evaluate(T.tvm_storage_sync("shared"))


def div(value: Expr, by: Expr | int) -> Expr:
    """Rounded down; nothing here is below zero, and saying so spares every kernel language a case."""
    return tirx.truncdiv(value, i32(by) if isinstance(by, int) else by)


def mod(value: Expr, by: Expr | int) -> Expr:
    return tirx.truncmod(value, i32(by) if isinstance(by, int) else by)


def load(buffer: Buffer, index: Expr) -> Expr:
    return tirx.BufferLoad(buffer, [index])


def store(buffer: Buffer, index: Expr, value: Expr) -> None:
    T.buffer_store(buffer, value, [index])


def fetch(source: Buffer, index: Expr, count: int, dtype: str) -> list[Expr]:
    """``count`` values (1, 2 or 4) that lie beside each other, in one load; ``index`` is a multiple of count."""
    if count == 1:
        return [T.Bind(load(source, index))]
    loaded = local(count, dtype)
    copy(source, index, loaded, 0, count)
    return [load(loaded, lane) for lane in range(count)]


def copy(source: Buffer, index: Expr, target: Buffer, place: Expr | int, count: int) -> None:
    """``count`` values that lie beside each other, at once; both indices are multiples of count."""
    if count == 1:
        store(target, place, load(source, index))
        return
    with T.vectorized(0, count) as lane:
        store(target, place + lane, load(source, index + lane))


def f32(value: float) -> Expr:
    return tirx.const(value, "float32")


def i32(value: int) -> Expr:
    return tirx.const(value, "int32")


def u32(value: int) -> Expr:
    return tirx.const(value, "uint32")


def bits(value: Expr, dtype: str) -> Expr:
    """The same bits as another type of the same size."""
    return tirx.reinterpret(dtype, value)


def to_float32(value: Expr, dtype: str) -> Expr:
    """A stored value as float32."""
    if dtype == "float32":
        return value
    if dtype == "bfloat16":
        return bits(tirx.Cast("uint32", value) << u32(16), "float32")
    return tirx.Cast("float32", value)


@contextmanager
def loop(extent: Any) -> Iterator[Expr]:
    with T.serial(0, extent) as index:
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


def strided(thread: Expr, threads: int, count: int | Expr, body: Callable[[Expr], None]) -> None:
    """body(index) for 0 <= index < count: index thread, thread + threads, ... by each thread of a block."""
    if isinstance(count, int) and count <= threads:
        guarded(None if count == threads else thread < count, lambda: body(thread))
        return
    with loop(ceil_div(count, threads)) as step:
        index = T.Bind(step * threads + thread)
        covered = isinstance(count, int) and not count % threads
        guarded(None if covered else index < count, lambda: body(index))


def repeat(count: int, unrolled: int, body: Callable[[Any], None]) -> None:
    """body(i) for 0 <= i < count: written out with numbers up to ``unrolled`` times, else in a loop."""
    if count <= unrolled:
        for index in range(count):
            body(index)
        return
    with loop(count) as index:
        body(index)


def guarded(condition: Expr | bool | None, body: Callable[[], None]) -> None:
    """``condition``: none is true; one that is known now leaves no question in the code."""
    if condition is None or condition is True:
        body()
        return
    if condition is False:
        return
    with when(condition):
        body()


Combine = Callable[[Expr, Expr], Expr]
WARP, ALL_LANES = 32, 0xFFFFFFFF  # threads that shuffle with each other
REDUCE_WIDTH = 16  # values that one thread combines


def block_reduce(value: Expr, thread: Expr, threads: int, combine: Combine, smem: Buffer) -> Expr:
    """One value of all the threads of a block, in each of them; ``smem``: 2 * threads values of shared memory.

    Every 16th of the threads' values is combined by a thread, and their results by all.
    """
    store(smem, thread, value)
    barrier()
    parts = threads // REDUCE_WIDTH
    with when(thread < parts):
        store(smem, threads + thread, reduce([load(smem, thread + parts * i) for i in range(REDUCE_WIDTH)], combine))
    barrier()
    result = T.Bind(reduce([load(smem, threads + i) for i in range(parts)], combine))
    barrier()
    return result


def block_sum(traits: GpuTraits, value: Expr, thread: Expr) -> Expr:
    """The sum over the threads of a block, in each of them."""
    if not traits.shuffles:
        return block_reduce(value, thread, traits.threads, add, shared(2 * traits.threads))
    smem = shared(traits.threads // WARP)
    total = warp_sum(value, WARP)
    with when(tirx.EQ(mod(thread, WARP), 0)):
        store(smem, div(thread, WARP), total)
    barrier()
    return T.Bind(reduce([load(smem, i) for i in range(traits.threads // WARP)], add))


def warp_sum(value: Expr, lanes: int) -> Expr:
    """The sum over ``lanes`` threads in a row, in each of them, by shuffles; all threads come here."""
    total = T.Bind(value)
    distance = lanes // 2
    while distance:
        other = T.tvm_warp_shuffle_xor(u32(ALL_LANES), total, i32(distance), i32(lanes), i32(lanes))
        total = T.Bind(total + other)
        distance //= 2
    return total


def reduce(values: Sequence[Expr], combine: Combine) -> Expr:
    result = values[0]
    for value in values[1:]:
        result = combine(result, value)
    return result


def add(one: Expr, other: Expr) -> Expr:
    return one + other


def maximum(one: Expr, other: Expr) -> Expr:
    return T.max(one, other)


def exp(x: Expr) -> Expr:
    return tirx.exp2(x * f32(LOG2_E))


def tanh(x: Expr) -> Expr:
    """1 - 2 / (e^2x + 1); e^88 is the largest that float32 holds."""
    power = exp(T.min(x * f32(2.0), f32(80.0)))
    return f32(1.0) - f32(2.0) / (power + f32(1.0))


HALF_PI = (1.5625, 0.0081787109375, 0.00011730194091796875, 3.1391647326017846e-07)
# pi / 2 in parts; the first three have 7 bits, so that a whole number below 2^17 times one of them is exact


def sin_cos(angle: Expr) -> tuple[Expr, Expr]:
    """sin and cos of float32 angles up to 2e5 radians, to 2e-7: quarter turns go off in parts (Cody and Waite 1980)."""
    quarters = T.Bind(tirx.floor(angle * f32(2 / math.pi) + f32(0.5)))
    rest = angle
    for part in HALF_PI:
        rest = T.Bind(rest - quarters * f32(part))
    square = T.Bind(rest * rest)
    sine = T.Bind(rest * horner(square, [(-1) ** k / math.factorial(2 * k + 1) for k in range(6)]))
    cosine = T.Bind(horner(square, [(-1) ** k / math.factorial(2 * k) for k in range(7)]))
    turn = T.Bind(tirx.Cast("int32", quarters))

    def signed(quarter: Expr) -> Expr:
        value = tirx.Select(tirx.EQ(quarter & i32(1), i32(1)), cosine, sine)
        return tirx.Select(tirx.EQ(quarter & i32(2), i32(2)), f32(0.0) - value, value)

    return signed(turn), signed(turn + i32(1))


def horner(x: Expr, coefficients: Sequence[float]) -> Expr:
    """c[0] + c[1] x + c[2] x^2 + ..."""
    value = f32(coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value = value * x + f32(coefficient)
    return value
