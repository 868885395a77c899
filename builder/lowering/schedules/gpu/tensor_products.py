"""y = x @ weight.T (+ bias) (+ residual) of many rows on tensor cores (targets/tensor_products.py has their code).

x becomes 16-bit numbers, in panels that the product copies whole; sums and results are float32. A row of x that holds
more than float16 does is divided by a power of two, and its results are multiplied by it. Where blocks are few, several
share the inputs of an output, and another kernel adds up what they have.

Kernels take all sizes as arguments, so that the products of a library share them (passes/equal_kernels.py).

Axes: M rows, N outputs, K inputs, U words of a row, G groups of a row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx

from llm_build.lowering.choices import choose
from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits
from llm_build.lowering.schedules.gpu.gemv import Inputs, is_regular
from llm_build.lowering.schedules.gpu.weights import Packed, Weight
from llm_build.lowering.schedules.ir import T
from llm_build.targets import tensor_products as text

_C_TYPES = {"float16": "__half", "bfloat16": "__nv_bfloat16", "float32": "float"}
_KINDS = {"group": "INTEGER", "int8": "INT8", "e4m3": "E4M3", "e5m2": "E5M2"}
_MULTIPROCESSORS = 132  # of an H100; blocks beyond what they hold wait
_MAX_SPLITS = 8
_STEPS_PER_SPLIT = 4  # at least
_LARGEST_EXPONENT = 14  # of a row's largest value, as float16 is to hold it
_CHUNK = 8  # values that are moved at once
_FEW_ROWS = (16, 64, 128)  # that a block takes where there are no more
_MANY_ROWS = {True: 128, False: 256}  # that it takes else: of a weight that is kept as it is, of a packed one


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a product as the kernel gets them: variables, but of the same values as in the weight."""

    rows: Expr
    n: Expr
    k: Expr
    units: Expr
    groups: Expr


@dataclass(frozen=True, slots=True)
class _Product:
    """What all kernels of a product know."""

    weight: Weight
    dtype: str
    stored: tuple[Buffer, ...]
    sizes: Sizes
    padded: Expr
    panels: Buffer
    row_scale: Buffer
    epilogue: Any  # linear.Epilogue
    traits: GpuTraits


def fits(weight: Weight, dtype: str) -> bool:
    """Whether a weight, in a model that computes in ``dtype``, can be multiplied by the kernels here."""
    if dtype not in ("float16", "bfloat16") or weight.k % _CHUNK:
        return False
    if not isinstance(weight, Packed):
        return weight.dtype == dtype
    if weight.group_units * weight.per_unit != weight.group_size or (weight.transposed and weight.zero_point):
        return False
    group_scales = weight.scale_dtype == dtype or _has_row_scales(weight)
    return group_scales and not (weight.n if weight.transposed else weight.units) % 4


def _has_row_scales(weight: Packed) -> bool:
    return weight.groups == 1 and not weight.zero_point


def with_sizes(args: list[Arg], weight: Weight, rows: Expr) -> tuple[list[Arg], Sizes]:
    """The arguments x, .., y of a kernel with variables for the sizes of all but bias and zero points."""
    n, units, groups = (b.size(name) for name in ("outputs", "units", "groups"))
    k = b.size("inputs") if args[0].dtype == "float32" else b.i32(weight.k)  # codes of x are words
    x = {"x": (rows, k)} if args[0].dtype == "float32" else {}
    of = {**x, "residual": (rows, b.size("residual_outputs")), "y": (rows, n)}
    if isinstance(weight, Packed):
        words, scales = (b.size("word_rows"), units), (b.size("scale_rows"), groups)
        turn = -1 if weight.transposed else 1
        of |= {"q_weight": words[::turn], "q_scale": scales[::turn]}
    else:
        of["weight"] = (n, k)
        units = groups = b.i32(0)
    return [replace(arg, shape=of.get(arg.name, arg.shape)) for arg in args], Sizes(rows, n, k, units, groups)


def multiply(
    weight: Weight, stored: tuple[Buffer, ...], sizes: Sizes, x: Inputs, epilogue: Any, traits: GpuTraits
) -> None:
    """``epilogue``: a linear.Epilogue; ``x`` and it have the sizes of ``sizes``."""
    dtype, rows = epilogue.dtype, sizes.rows
    padded = T.Bind(b.ceil_div(rows, text.PANEL_ROWS) * text.PANEL_ROWS)
    panels = b.scratch(padded * (_steps(sizes.k) * (text.INPUTS // 2)), "uint32")
    product = _Product(
        weight, dtype, stored, sizes, padded, panels, b.scratch(rows), replace(epilogue, n=sizes.n), traits
    )
    _pack(product, replace(x, k=sizes.k))
    most = _MANY_ROWS[weight.plain]

    def among(few: tuple[int, ...]) -> None:
        if not few:
            _multiply(product, most, None)
            return
        b.if_else(rows <= few[0], lambda: _multiply(product, few[0], few[0]), lambda: among(few[1:]))

    among(tuple(tokens for tokens in _FEW_ROWS if tokens < most))


def _steps(k: Expr) -> Expr:
    return b.ceil_div(k, text.INPUTS)


def _pack(product: _Product, x: Inputs) -> None:
    """x in panels, and what its rows are to be multiplied by in the end: a block for each row."""
    sizes, threads, scale = product.sizes, product.traits.threads, product.epilogue.scale
    regular, chunks = is_regular(product.weight, x), _steps(sizes.k) * (text.INPUTS // _CHUNK)

    def values(row: Expr, first: Expr) -> list[Expr]:
        if regular:
            at = T.Bind(T.min(first, sizes.k - _CHUNK))
            loaded = [*x.four(row, at), *x.four(row, at + 4)]
        else:
            loaded = [x.at(row, T.min(first + e, sizes.k - 1)) for e in range(_CHUNK)]
        return [tirx.Select(first < sizes.k, value, b.f32(0.0)) for value in loaded]

    with b.launch(threads, sizes.rows) as (row, _, thread):
        inverse, factor = b.f32(1.0), b.f32(1.0)
        if product.dtype == "float16" and x.plain:
            largest = b.local(1)
            b.store(largest, 0, b.f32(0.0))

            def compare(chunk: Expr) -> None:
                for value in values(row, T.Bind(chunk * _CHUNK)):
                    b.store(largest, 0, T.max(b.load(largest, 0), T.max(value, b.f32(0.0) - value)))

            b.strided(thread, threads, chunks, compare)
            most = b.block_reduce(b.load(largest, 0), thread, threads, b.maximum, b.shared(2 * threads))
            exponent = tirx.Cast("int32", b.bits(most, "uint32") >> b.u32(23)) - 127
            excess = T.Bind(T.max(exponent - _LARGEST_EXPONENT, b.i32(0)))
            inverse, factor = (
                T.Bind(b.bits(tirx.Cast("uint32", 127 + power) << b.u32(23), "float32")) for power in (-excess, excess)
            )
        with b.when(tirx.EQ(thread, 0)):
            b.store(product.row_scale, row, factor if scale is None else factor * b.load(scale, row))

        def put(chunk: Expr) -> None:
            own = b.local(_CHUNK // 2, "uint32")
            halves = [_bits16(value * inverse, product.dtype) for value in values(row, T.Bind(chunk * _CHUNK))]
            for pair in range(_CHUNK // 2):
                b.store(own, pair, halves[2 * pair] | (halves[2 * pair + 1] << b.u32(16)))
            panel, place = T.Bind(b.div(chunk, 8)), T.Bind(b.mod(chunk, 8))
            line = T.Bind((panel * product.padded + row) * 8 + (place ^ b.mod(row, 8)))
            b.copy(own, 0, product.panels, line * (_CHUNK // 2), _CHUNK // 2)

        b.strided(thread, threads, chunks, put)


def _bits16(value: Expr, dtype: str) -> Expr:
    """A float32 number rounded to ``dtype``, its bits as uint32."""
    if dtype == "float16":
        return tirx.Cast("uint32", b.bits(tirx.Cast("float16", value), "uint16"))
    whole = T.Bind(b.bits(value, "uint32"))
    return (whole + b.u32(0x7FFF) + ((whole >> b.u32(16)) & b.u32(1))) >> b.u32(16)


def _multiply(product: _Product, tokens: int, rows: int | None) -> None:
    """Up to ``rows`` rows (None: any number), ``tokens`` by a block."""
    weight, sizes, epilogue = product.weight, product.sizes, product.epilogue
    kind, weight_bytes = _type_of(weight, product.dtype)
    stages = text.stages(tokens, weight_bytes)
    choose(
        "tensor cores", f"up to {rows} rows" if rows else "any number of rows", rows=tokens, outputs=text.OUTPUTS,
        stages=stages, threads=text.THREADS,
    )  # fmt: skip
    row_tiles, tiles = T.Bind(b.ceil_div(sizes.rows, tokens)), T.Bind(b.ceil_div(sizes.n, text.OUTPUTS))
    splits = _splits(row_tiles * tiles, _steps(sizes.k), 1 if tokens >= 128 else 2)
    parts = b.scratch(tirx.Select(splits > 1, splits * sizes.rows * sizes.n, b.i32(1)))
    with b.launch(text.THREADS, row_tiles, tiles * splits) as (row_tile, block, _):
        product.traits.opt_out_of_pdl()
        memory = T.alloc_buffer((text.shared_bytes(tokens, weight_bytes),), "uint8", scope="shared.dyn")
        nothing = [None] * (3 - len(product.stored))
        tensors = [
            product.panels, *product.stored, *nothing, epilogue.y, parts, product.row_scale, epilogue.bias,
            epilogue.residual,
        ]  # fmt: skip
        name = f"{text.NAMESPACE}::product<{tokens}, {stages}, {text.NAMESPACE}::{kind}>"
        T.evaluate(
            tirx.call_extern(
                "int32", name, *(b.i32(0) if each is None else each.data for each in tensors), b.f32(epilogue.share),
                sizes.rows, product.padded, sizes.n, sizes.k, sizes.units, sizes.groups, splits, block, row_tile,
                memory.data,
            )
        )  # fmt: skip
    with b.when(splits > 1):
        _add_up(product, parts, splits)


def _splits(blocks: Expr, steps: Expr, per_multiprocessor: int) -> Expr:
    """How many blocks share the inputs of an output, so that all multiprocessors have work."""
    wanted = b.div(blocks + 2 * _MULTIPROCESSORS * per_multiprocessor, 2 * blocks)  # rounded to the nearest
    most = T.min(b.div(steps, _STEPS_PER_SPLIT), b.i32(_MAX_SPLITS))
    return T.Bind(T.max(T.min(wanted, most), b.i32(1)))


def _add_up(product: _Product, parts: Buffer, splits: Expr) -> None:
    """The results of several splits, and what is added to them."""
    epilogue, n, count = replace(product.epilogue, scale=product.row_scale), product.sizes.n, product.sizes.rows

    def one(index: Expr) -> None:
        row, column, total = T.Bind(b.div(index, n)), T.Bind(b.mod(index, n)), b.local(1)
        b.store(total, 0, b.f32(0.0))
        with b.loop(splits) as split:
            b.store(total, 0, b.load(total, 0) + b.load(parts, split * (count * n) + index))
        b.store(epilogue.y, index, epilogue.at(row, column)(b.load(total, 0)))

    b.for_each(product.traits, count * n, one)


def _type_of(weight: Weight, dtype: str) -> tuple[str, int]:
    """The weight's type in the text, and its bytes for 64 inputs of an output in shared memory."""
    element = _C_TYPES[dtype]
    if not isinstance(weight, Packed):
        return f"Plain<{element}>", 2 * text.INPUTS
    group = 0 if _has_row_scales(weight) else weight.group_size
    flags = (weight.transposed, weight.zero_point, weight.one_scale)
    values = [
        element, _C_TYPES[weight.scale_dtype], f"{text.NAMESPACE}::{_KINDS[weight.kind]}", weight.bits, weight.per_unit,
        group, weight.max_int, *(str(flag).lower() for flag in flags),
    ]  # fmt: skip
    return f"Packed<{', '.join(map(str, values))}>", text.bytes_of_step(weight.per_unit, weight.transposed)
