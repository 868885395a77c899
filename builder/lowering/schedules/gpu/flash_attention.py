"""Attention of many query tokens on NVIDIA's tensor cores: a launch of the functions of targets/flash_attention.py.

Products are of the cache's type, 16 bits, with float32 sums; the softmax is float32. A block has a tile of rows, each
a token and a query head; heads that share a key head are rows beside each other. The block index y counts the tiles of
all sequences, x the key heads, so that the longest tiles of all heads start first.
"""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from llm_build.lowering.choices import choose
from llm_build.lowering.schedules.gpu import block as b
from llm_build.lowering.schedules.gpu.block import Arg, Buffer, Expr, GpuTraits, Scalar
from llm_build.lowering.schedules.gpu.cache import pages_arg
from llm_build.lowering.schedules.gpu.paged import ROTARY, table_args
from llm_build.lowering.schedules.ir import T
from llm_build.ops.kv_cache import CacheLayout

MMA_ROWS, WGMMA_ROWS, WGMMA_COLUMNS = 16, 64, 64  # of one product; columns of a line of shared memory
LINE_PADDING = 8  # numbers, of a line in shared memory
SHARED_BYTES = 99 << 10  # that a block may have on all GPUs from sm_80 on: sm_86 and sm_89 have no more
WGMMA_SHARED_BYTES = 227 << 10  # on sm_90
ALIGNMENT = 1024  # bytes, of what wgmma reads
TYPES = {"float16": "__half", "bfloat16": "__nv_bfloat16"}  # of products, in C


@dataclass(frozen=True, slots=True)
class FlashTile:
    """Products by mma.sync. ``rows`` of a block and ``row_tiles`` (of 16 rows) of each of its warps; ``keys`` of a
    step, of which ``stages`` are in shared memory."""

    rows: int
    row_tiles: int
    keys: int
    stages: int

    kernel = "flash"
    instruction = "mma.sync"

    @property
    def threads(self) -> int:
        return self.rows // (MMA_ROWS * self.row_tiles) * b.WARP

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.rows, self.row_tiles, self.keys, self.stages

    def shared_bytes(self, head_dim: int) -> int:
        """Of 16-bit queries, keys and values."""
        return 2 * (head_dim + LINE_PADDING) * (self.rows + 2 * self.keys * self.stages)


@dataclass(frozen=True, slots=True)
class FlashWideTile:
    """Products by wgmma: ``rows`` of a block, 64 for 4 warps; ``keys`` of a step, of which two are in shared memory."""

    rows: int
    keys: int

    kernel = "flash_wide"
    instruction = "wgmma"

    @property
    def threads(self) -> int:
        return self.rows // WGMMA_ROWS * 4 * b.WARP

    @property
    def sizes(self) -> tuple[int, ...]:
        return self.rows, self.keys

    def shared_bytes(self, head_dim: int) -> int:
        """Of 16-bit queries, keys and values in lines of 64."""
        return ALIGNMENT + 2 * (-(-head_dim // WGMMA_COLUMNS) * WGMMA_COLUMNS) * (self.rows + 4 * self.keys)


Tile = FlashTile | FlashWideTile
_TILES: dict[int, Tile] = {  # the largest head_dim -> tile: fits 255 registers and SHARED_BYTES, the fastest on an H200
    64: FlashTile(rows=128, row_tiles=2, keys=128, stages=1),
    128: FlashTile(rows=128, row_tiles=2, keys=64, stages=1),
    256: FlashTile(rows=64, row_tiles=1, keys=64, stages=1),
}
_WIDE_TILES: dict[int, Tile] = {  # the same by wgmma
    80: FlashWideTile(rows=128, keys=128),
    112: FlashWideTile(rows=192, keys=64),
    128: FlashWideTile(rows=128, keys=128),
    256: FlashWideTile(rows=128, keys=64),
}


def flash_tile_of(layout: CacheLayout, traits: GpuTraits) -> Tile | None:
    """None: the GPU has no such products, or they are not for this cache."""
    tiles = _WIDE_TILES if traits.wgmma else _TILES
    tile = next((tile for most, tile in tiles.items() if layout.head_dim <= most), None)
    if not traits.tensor_cores or layout.dtype not in TYPES or tile is None or layout.head_dim % MMA_ROWS:
        return None
    choose(
        "flash attention on tensor cores", f"a cache of {layout.dtype}, and {tile.instruction} for it",
        rows=tile.rows, keys=tile.keys, threads=tile.threads,
    )  # fmt: skip
    return tile


def flash_paged(layout: CacheLayout, tile: Tile) -> tirx.PrimFunc:
    """As prefill_attention.prefill_paged."""
    batch, total = b.size("batch"), b.size("total")

    def body(q: Buffer, q_indptr: Buffer, pages: Buffer, indptr: Buffer, table: Buffer, last: Buffer, k_start: Buffer,
             position: Buffer, out: Buffer, lse: Buffer, _causal: Expr, _mode: Expr, _scale: Expr, _theta: Expr,
             scale: Expr) -> None:  # fmt: skip
        read = [q, q_indptr, pages, indptr, table, last, k_start, position]
        _launch("paged", layout, tile, total, batch, [*read, out, lse], [], scale)

    result = (total, layout.query_heads, layout.head_dim)
    return b.kernel(
        [
            Arg("q", result, layout.dtype),
            Arg("q_indptr", (b.size("q_indptr_size"),), "int32", offset=True),
            pages_arg(layout),
            *table_args(batch),
            Arg("k_rope_offset", (batch,), "int32", offset=True),
            Arg("q_rope_position", (total,), "int32", offset=True),
            Arg("out", result, layout.dtype),
            Arg("lse", result[:2]),
            Scalar("causal", "int32"),
            *ROTARY,
            Scalar("scale", "float32"),
        ],
        body,
    )


def flash_ragged(layout: CacheLayout, tile: Tile) -> tirx.PrimFunc:
    """As prefill_attention.prefill_ragged."""
    q_total, k_total, batch = b.size("q_total"), b.size("k_total"), b.size("batch")

    def body(q: Buffer, q_indptr: Buffer, k: Buffer, v: Buffer, k_indptr: Buffer, position: Buffer, k_start: Buffer,
             out: Buffer, lse: Buffer, causal: Expr, _mode: Expr, _scale: Expr, _theta: Expr,
             scale: Expr) -> None:  # fmt: skip
        read = [q, q_indptr, k, v, k_indptr, k_start, position]
        _launch("ragged", layout, tile, q_total, batch, [*read, out, lse], [causal], scale)

    result, source = (q_total, layout.query_heads, layout.head_dim), (k_total, layout.key_heads, layout.head_dim)
    return b.kernel(
        [
            Arg("q", result, layout.dtype),
            Arg("q_indptr", (b.size("q_indptr_size"),), "int32", offset=True),
            Arg("k", source, layout.dtype),
            Arg("v", source, layout.dtype),
            Arg("k_indptr", (b.size("k_indptr_size"),), "int32", offset=True),
            Arg("q_rope_position", (q_total,), "int32", offset=True),
            Arg("k_rope_offset", (batch,), "int32", offset=True),
            Arg("out", result, layout.dtype),
            Arg("lse", result[:2]),
            Scalar("causal", "int32"),
            *ROTARY,
            Scalar("scale", "float32"),
        ],
        body,
    )


def _launch(
    name: str, layout: CacheLayout, tile: Tile, total: Expr, batch: Expr, buffers: list[Buffer],
    flags: list[Expr], scale: Expr,
) -> None:  # fmt: skip
    """One block for each tile and key head. A sequence has a tile that is not full at most, so that there are at most
    ``batch`` more than full ones."""
    group, kind = layout.query_heads // layout.key_heads, TYPES[layout.dtype]
    sizes = ", ".join(map(str, (layout.head_dim, group, *tile.sizes)))
    function = f"{tile.kernel}_{name}<{sizes}, {kind}, {kind}, {kind}>"
    tiles = b.div(total * group, tile.rows) + batch
    with b.launch(tile.threads, layout.key_heads, tiles) as (head, index, _):
        memory = T.alloc_buffer((tile.shared_bytes(layout.head_dim),), "uint8", scope="shared.dyn")
        places = [tirx.address_of(b.load(buffer, 0)) for buffer in (memory, *buffers)]
        numbers = [b.f32(layout.soft_cap), b.i32(layout.window), b.i32(layout.sinks)]
        values = [*places, batch, b.i32(layout.key_heads), *flags, scale, *numbers, index, head]
        T.evaluate(tirx.call_extern("int32", function, *values))
