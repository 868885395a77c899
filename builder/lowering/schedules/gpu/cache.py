"""What moves keys and values on a GPU: rotary embedding, appending to pages, copying pages, merging two results.

A page of one layer is (2, key heads, PAGE, D) to the runtime. Inside, keys are stored turned, (D, PAGE), so that
threads that each take a token read beside each other; values are (PAGE, D).
Axes: M rows (tokens), A heads, D features of a head, P pages.
"""

from __future__ import annotations

from tvm import tirx

from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits, Scalar
from llm_build.lowering.schedules.ir import T
from llm_build.ops.kv_cache import CacheLayout

PAGE = 16  # tokens
FREQUENCIES_ARE_PASSED = True  # to split_rotary: a GPU kernel has no table of constants


def pages_arg(layout: CacheLayout) -> Arg:
    return Arg("pages", (b.size("num_pages"), 2, layout.key_heads, PAGE, layout.head_dim), layout.dtype)


def key_base(layout: CacheLayout, page: Expr, head: Expr) -> Expr:
    """Where the turned keys (D, PAGE) of one head of a page start."""
    return (page * (2 * layout.key_heads) + head) * (PAGE * layout.head_dim)


def value_base(layout: CacheLayout, page: Expr, head: Expr) -> Expr:
    """Where the values (PAGE, D) of one head of a page start."""
    return key_base(layout, page, layout.key_heads + head)


def split_rotary(layout: CacheLayout, traits: GpuTraits) -> tirx.PrimFunc:
    """Fused q, k, v -> three tensors, q and k rotated to their positions (halves paired, as transformers does).

    The runtime passes the frequencies of a cache that has some, and else a number that says nothing new.
    """
    queries, keys, width, rows = layout.query_heads, layout.key_heads, layout.head_dim, b.size("rows")
    half, heads = layout.rotary_dim // 2, layout.query_heads + 2 * layout.key_heads

    def body(qkv: Buffer, positions: Buffer, q: Buffer, k: Buffer, value: Buffer, frequency: Buffer) -> None:
        def one(index: Expr) -> None:
            d, head = T.Bind(b.mod(index, width)), T.Bind(b.mod(b.div(index, width), heads))
            row = T.Bind(b.div(index, heads * width))
            result = b.local(1)
            b.store(result, 0, b.load(qkv, index))
            if half:
                with b.when(tirx.And(d < 2 * half, head < queries + keys)):
                    position = tirx.Cast("float32", b.load(positions, row))
                    angle = T.Bind(position * b.load(frequency, b.mod(d, half)))
                    b.store(result, 0, _turned(layout, qkv, index, d, angle))
            put(b.load(result, 0), row, head, d)

        def put(result: Expr, row: Expr, head: Expr, d: Expr) -> None:
            for out, first, count in ((q, 0, queries), (k, queries, keys), (value, queries + keys, keys)):
                with b.when(tirx.And(head >= first, head < first + count)):
                    b.store(out, (row * count + (head - first)) * width + d, result)

        b.for_each(traits, rows * (heads * width), one)

    last = Arg("frequency", (half,)) if half else Scalar("apply_rope", "int64")
    return b.kernel(
        [
            Arg("qkv", (rows, heads, width)),
            Arg("positions", (rows,), "int32", offset=True),
            Arg("q", (rows, queries, width)),
            Arg("k", (rows, keys, width)),
            Arg("value", (rows, keys, width)),
            last,
        ],
        body,
    )


def _turned(layout: CacheLayout, qkv: Buffer, index: Expr, d: Expr, angle: Expr) -> Expr:
    """Feature d of a head after the rotation of its pair."""
    half, scale = layout.rotary_dim // 2, layout.rotary_scale
    sine, cosine = b.sin_cos(angle)
    if scale != 1.0:
        sine, cosine = sine * b.f32(scale), cosine * b.f32(scale)
    first = d < half
    other = b.load(qkv, tirx.Select(first, index + half, index - half))
    return b.load(qkv, index) * cosine + tirx.Select(first, -other, other) * sine


def append(layout: CacheLayout, traits: GpuTraits) -> tirx.PrimFunc:
    """New keys and values into their slots; position -1 is skipped."""
    keys, width, rows = layout.key_heads, layout.head_dim, b.size("rows")

    def body(pages: Buffer, k: Buffer, value: Buffer, slots: Buffer) -> None:
        def one(index: Expr) -> None:
            slot = T.Bind(b.load(slots, b.div(index, keys * width)))
            with b.when(slot >= 0):
                head, d = T.Bind(b.mod(b.div(index, width), keys)), T.Bind(b.mod(index, width))
                page, inside = T.Bind(b.div(slot, PAGE)), T.Bind(b.mod(slot, PAGE))
                b.store(pages, key_base(layout, page, head) + d * PAGE + inside, b.load(k, index))
                b.store(pages, value_base(layout, page, head) + inside * width + d, b.load(value, index))

        b.for_each(traits, rows * (keys * width), one)

    return b.kernel(
        [
            pages_arg(layout),
            Arg("k", (rows, keys, width)),
            Arg("value", (rows, keys, width)),
            Arg("slots", (rows,), "int32", offset=True),
        ],
        body,
    )


def merge(layout: CacheLayout, traits: GpuTraits) -> tirx.PrimFunc:
    """Two attention results over disjoint keys into the first: weights 2^lse, as in a softmax over both."""
    heads, width, rows, threads = layout.query_heads, layout.head_dim, b.size("rows"), traits.threads

    def body(out: Buffer, lse: Buffer, other: Buffer, other_lse: Buffer) -> None:
        with b.launch(threads, rows * heads) as (at, _, thread):
            here, there = T.Bind(b.load(lse, at)), T.Bind(b.load(other_lse, at))
            top = T.Bind(T.max(here, there))
            weight, other_weight = T.Bind(tirx.exp2(here - top)), T.Bind(tirx.exp2(there - top))
            both = T.Bind(weight + other_weight)
            b.barrier()
            with b.when(tirx.EQ(thread, 0)):
                b.store(lse, at, top + tirx.log2(both))

            def one(d: Expr) -> None:
                place = T.Bind(at * width + d)
                b.store(out, place, (b.load(out, place) * weight + b.load(other, place) * other_weight) / both)

            b.strided(thread, threads, width, one)

    sums, logs = (rows, heads, width), (rows, heads)
    return b.kernel([Arg("out", sums), Arg("lse", logs), Arg("other", sums), Arg("other_lse", logs)], body)


def copy_single_page(layout: CacheLayout, traits: GpuTraits) -> tirx.PrimFunc:
    """The first ``length`` tokens of one page into another."""
    heads, width = layout.key_heads, layout.head_dim

    def body(pages: Buffer, source: Expr, target: Expr, length: Expr) -> None:
        def one(index: Expr) -> None:
            head, token = T.Bind(b.div(index, PAGE * width)), T.Bind(b.div(b.mod(index, PAGE * width), width))
            with b.when(token < length):
                _move(layout, pages, (source, token), (target, token), head, T.Bind(b.mod(index, width)))

        b.for_each(traits, heads * PAGE * width, one)

    return b.kernel([pages_arg(layout), *(Scalar(n, "int64") for n in ("source", "sink", "length"))], body)


def _move(
    layout: CacheLayout, pages: Buffer, source: tuple[Expr, Expr], target: tuple[Expr, Expr], head: Expr, d: Expr
) -> None:
    """One feature of the key and of the value of a token, from (page, token) to (page, token)."""
    for base, token_stride, feature_stride in ((key_base, 1, PAGE), (value_base, layout.head_dim, 1)):
        at_target, at_source = (
            base(layout, page, head) + token * token_stride + d * feature_stride for page, token in (target, source)
        )
        b.store(pages, at_target, b.load(pages, at_source))


def compact(layout: CacheLayout, traits: GpuTraits) -> tirx.PrimFunc:
    """Tokens moved in the cache: for sequence s, entries indptr[s] .. indptr[s + 1] of (from, to) slots, in order."""
    entries, moves, heads, width = b.size("entries"), b.size("moves"), layout.key_heads, layout.head_dim

    def body(pages: Buffer, indptr: Buffer, slots: Buffer, batch: Expr) -> None:
        def one(index: Expr) -> None:
            head, d = T.Bind(b.mod(b.div(index, width), heads)), T.Bind(b.mod(index, width))
            sequence = T.Bind(b.div(index, heads * width))
            first = T.Bind(b.load(indptr, sequence))
            with b.loop(b.load(indptr, sequence + 1) - first) as step:
                source, target = T.Bind(b.load(slots, first + step)), T.Bind(b.load(slots, moves + first + step))
                ends = [(b.div(slot, PAGE), b.mod(slot, PAGE)) for slot in (source, target)]
                _move(layout, pages, ends[0], ends[1], head, d)

        b.for_each(traits, batch * (heads * width), one)

    return b.kernel(
        [
            pages_arg(layout),
            Arg("indptr", (entries,), "int32", offset=True),
            Arg("slots", (2, moves), "int32", offset=True),
            Scalar("batch", "int32"),
        ],
        body,
    )


def debug_get(layout: CacheLayout, traits: GpuTraits) -> tirx.PrimFunc:
    """Keys and values of the given slots of one layer, as (layers, tokens, heads, D)."""
    heads, width, tokens = layout.key_heads, layout.head_dim, b.size("tokens")

    def body(pages: Buffer, slots: Buffer, k: Buffer, value: Buffer, layer: Expr) -> None:
        def one(index: Expr) -> None:
            slot = T.Bind(b.load(slots, b.div(index, heads * width)))
            head, d = T.Bind(b.mod(b.div(index, width), heads)), T.Bind(b.mod(index, width))
            page, inside = T.Bind(b.div(slot, PAGE)), T.Bind(b.mod(slot, PAGE))
            at = T.Bind(layer * (tokens * (heads * width)) + index)
            b.store(k, at, b.load(pages, key_base(layout, page, head) + d * PAGE + inside))
            b.store(value, at, b.load(pages, value_base(layout, page, head) + inside * width + d))

        b.for_each(traits, tokens * (heads * width), one)

    whole = (layout.layers, tokens, heads, width)
    return b.kernel(
        [
            pages_arg(layout),
            Arg("slots", (tokens,), "int32", offset=True),
            Arg("k", whole),
            Arg("value", whole),
            Scalar("layer", "int64"),
        ],
        body,
    )
