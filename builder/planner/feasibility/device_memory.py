"""Bytes of device memory that running a library takes, from shapes alone: weights, KV cache, activations, runtime.

- Weights: every packed tensor, exactly (quant/layout).
- KV cache: pages of 16 tokens, one for the runtime's own use beside those of the tokens (TVM's
  ``vm.builtin.paged_attention_kv_cache_create``), a tensor for each layer: (pages, 2, key heads, 16, head width).
- Activations: what TVM's ``StaticPlanBlockMemory`` gives to the functions of a library, which its memory pool keeps:
  the planner is played through for one layer (all are alike), for prefill_chunk_size rows, for max_batch_size rows and
  for one. Beside them the inputs of the layers, the cache's own buffers for one chunk, and the logits.
- Runtime: ``target.runtime_bytes``, measured; of one of several GPUs PEERS_BYTES more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_build.architectures.weights import Parameter
from llm_build.config.schema import Metadata, Target
from llm_build.quant.layout import Scheme, layer_of, stored_tensors

PAGE_TOKENS = 16
_REUSE_RANGE = 16  # the planner takes memory up to this many times larger or smaller than asked for
FLOAT32, INDEX = 4, 4  # bytes
_PEERS_BYTES = 680_000_000  # NCCL and the rooms for small sums, on each of two H200s (10,489 MiB in all, of a 7B shape)
_POOL_BYTES = 4096  # TVM's memory pool hands out multiples of it


@dataclass(frozen=True, slots=True)
class Layer:
    """Widths of one layer, in elements per row: (input, output) of each matrix in the order of the computation.

    ``pairs``: matrices of a mixture's experts have this many rows per token (1: no mixture).
    """

    hidden: int
    queries: int
    keys: int
    matrices: tuple[tuple[int, int], ...]
    heads: int
    experts: int  # 0: no mixture
    pairs: int
    head_norms: bool
    norms_before: bool  # of attention and MLP
    norms_after: bool
    rounded: bool  # inputs of matrices, to bytes
    summed: bool = False  # over ranks: what attention and MLP make
    parallel: bool = False  # attention and MLP read the same residual


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes."""

    weights: int
    cache: int
    activations: int
    runtime: int

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations + self.runtime


@dataclass(frozen=True, slots=True)
class Shapes:
    """All that memory hangs on but the sizes of a recipe. ``widths``: bytes per row of the planner's buffers."""

    layer: Layer
    layers: int
    vocab: int
    vocab_parts: int  # ranks that make a part of the logits each; 1: they make all of them
    element_bytes: int  # of an activation, and of what the KV cache holds
    widths: tuple[int, ...]
    weights: Mapping[str, int]  # stored tensor -> bytes
    runtime: int
    sequences: int  # that the target's runtimes keep at most; 0: max_batch_size
    spare: int = 0  # bytes that the rules of a budget, not picked yet, may give to weights beyond the scheme's


def model_shapes(
    table: Sequence[Parameter], architecture: Mapping[str, Any], scheme: Scheme, target: Target, shards: int = 1
) -> Shapes:
    """``table``: the family's parameters; ``architecture``: its Config as a dict; both as one of ``shards`` ranks has
    them (sharding.of_each_rank)."""
    layer, layers = _layer_of_model(table, architecture, scheme, shards), int(architecture["num_hidden_layers"])
    widths = tuple(_planned_widths(layer, layers, FLOAT32))
    weights = {piece.name: piece.nbytes for parameter in table for piece in stored_tensors(parameter, scheme)}
    vocab, runtime = int(architecture["vocab_size"]), target.runtime_bytes
    runtime += _PEERS_BYTES if target.kind == "cuda" and shards > 1 else 0
    parts = next((vocab // parameter.shape[0] for parameter in table if parameter.kind == "head"), 1)
    return Shapes(layer, layers, vocab, parts, FLOAT32, widths, weights, runtime, target.max_sequences)


def memory_needed(model: Shapes, sizes: Metadata) -> Memory:
    """What a run of these sizes takes."""
    cache = model.layers * _page_tensor(model, sizes)
    weights = sum(model.weights.values()) + model.spare
    return Memory(weights, cache, activations(model, sizes), model.runtime)


def largest_tensor(model: Shapes, sizes: Metadata) -> tuple[str, int]:
    """(what it is, bytes) of the largest tensor that a kernel gets."""
    tensors = {
        **model.weights,
        "the KV cache of a layer": _page_tensor(model, sizes),
        "a chunk's activations": max(model.widths) * sizes.prefill_chunk_size,
        "the logits": model.vocab * FLOAT32 * sequences(model, sizes),
    }
    return max(tensors.items(), key=lambda item: item[1])


def sequences(model: Shapes, sizes: Metadata) -> int:
    return min(sizes.max_batch_size, model.sequences or sizes.max_batch_size)


def _page_tensor(model: Shapes, sizes: Metadata) -> int:
    """One layer's part of the KV cache, in bytes."""
    pages = -(-sequences(model, sizes) * sizes.context_window_size // PAGE_TOKENS) + 1
    return pages * PAGE_TOKENS * 2 * model.layer.keys * model.element_bytes


def _layer_of_model(table: Sequence[Parameter], architecture: Mapping[str, Any], scheme: Scheme, shards: int) -> Layer:
    """The first layer, read from the parameters' names and shapes: matrices come in the order of the computation."""
    first = [parameter for parameter in table if layer_of(parameter.name) == 0]
    router = next((parameter.shape[0] for parameter in first if parameter.kind == "router"), 0)
    norms = {parameter.name.split(".")[-2] for parameter in first if parameter.kind == "norm"}
    linear = [(p.shape[1], p.shape[0]) for p in first if p.kind == "linear"]
    (hidden, fused), (queries, _) = linear[:2]
    inner = [(width, out // router if router else out) for width, out in linear[2:]]
    heads, pairs = int(architecture["num_attention_heads"]), int(architecture["num_experts_per_tok"]) if router else 1
    return Layer(
        hidden, queries, (fused - queries) // 2, (*linear[:2], *inner), heads, router, pairs,
        "q_norm" in norms, "input_layernorm" in norms, "post_feedforward_layernorm" in norms,
        bool(scheme.activation), shards > 1, bool(architecture.get("use_parallel_residual")),
    )  # fmt: skip


def activations(model: Shapes, sizes: Metadata) -> int:
    """Bytes that all functions of a library keep beside weights and pages; of logits also those of the call before."""
    chunk, batch = sizes.prefill_chunk_size, sequences(model, sizes)
    rows = {chunk, batch, 1}
    planned = sum(_round_up_to_pages(width * count) for count in rows for width in model.widths)
    embedded = sum(_round_up_to_pages(count * model.layer.hidden * model.element_bytes) for count in _input_rows(chunk))
    if model.layer.norms_before and model.layer.norms_after:  # Gemma, whose embeddings are scaled: one buffer more
        embedded += _round_up_to_pages(chunk * model.layer.hidden * model.element_bytes)
    logits = sum(2 * _round_up_to_pages(count * model.vocab * FLOAT32) for count in {batch, 1})
    if model.vocab_parts > 1:  # a rank's part, and all parts before they are put in order
        widths = (model.vocab, model.vocab // model.vocab_parts)
        logits += sum(_round_up_to_pages(count * width * FLOAT32) for count in {batch, 1} for width in widths)
    return planned + embedded + logits + _cache_buffers(model, chunk)


def _input_rows(chunk: int) -> set[int]:
    """How many rows of inputs there are at once: the engine fills prompts up to a power of two, or the whole chunk."""
    return {min(1 << bits, chunk) for bits in range(chunk.bit_length() + 1)}


def _cache_buffers(model: Shapes, chunk: int) -> int:
    """The cache's copies of one chunk's queries, keys, values and results, and two sums of every head (float32)."""
    layer = model.layer
    return chunk * ((2 * layer.queries + 2 * layer.keys) * model.element_bytes + 2 * layer.heads * FLOAT32)


def _round_up_to_pages(nbytes: int) -> int:
    return -(-nbytes // _POOL_BYTES) * _POOL_BYTES


def _planned_widths(layer: Layer, layers: int, nbytes: int) -> list[int]:
    """Bytes per row of the buffers that the planner ends with."""
    planner = _Planner()
    residual = None
    for _ in range(layers):
        residual = _plan_layer(layer, nbytes, planner, residual)
    routes = [layer.experts * nbytes, 2 * layer.pairs * nbytes] if layer.experts else []
    return planner.sizes + routes


def _plan_layer(layer: Layer, nbytes: int, planner: _Planner, residual: int | None) -> int:
    """One layer's buffers, taken and freed as its graph does; the residual stream comes in and goes out."""
    hidden, pairs = layer.hidden * nbytes, layer.pairs
    (width, fused), (queries, _), *inner = layer.matrices
    heads = [(_codes(layer, width), fused * nbytes), *[(0, fused * nbytes)] * layer.head_norms, (0, queries * nbytes)]
    heads.append((_codes(layer, queries), hidden))
    total = [(0, hidden)] * layer.summed  # of the ranks' parts, each with its share of the residual
    after = int(layer.summed and not layer.norms_after)
    attended = planner.block(residual, layer, hidden, [*heads, *total], 0 if layer.parallel else after)
    pieces = zip(inner, [*inner[1:], None], strict=True)
    made = [(read, width * pairs * nbytes) for matrix in pieces for read, width in steps(layer, *matrix)]
    if layer.experts:  # their sum; of several ranks the sum of those, and that with the residual
        return planner.block(attended, layer, hidden, [*made, *[(0, hidden)] * (pairs > 1), *total * 2])
    return planner.block(attended, layer, hidden, [*made, *total], after)


def _codes(layer: Layer, width: int) -> int:
    """Bytes of a row of a matrix's inputs where they are rounded to bytes (quant.activation), four in a word."""
    return -(-width // 4) * 4 if layer.rounded else 0


def steps(layer: Layer, matrix: tuple[int, int], after: tuple[int, int] | None) -> Iterator[tuple[int, int]]:
    """(rounded input, width made) of a matrix, and of what makes the next one's input of its output."""
    yield _codes(layer, matrix[0]), matrix[1]
    if after is not None:
        yield 0, after[0]


class _Planner:
    """TVM's greedy memory planner (StorageAllocator1D of apache/tvm, src/relax/transform/static_plan_block_memory.cc):
    a request takes the smallest free buffer of its dtype that is large enough, else the largest of the smaller ones,
    which grows."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.words: set[int] = set()  # buffers of integers, the others are of floats
        self.unused: list[int] = []

    def take(self, nbytes: int, words: bool = False) -> int:
        unused = [i for i in self.unused if (i in self.words) == words]
        larger = [i for i in unused if nbytes <= self.sizes[i] <= nbytes * _REUSE_RANGE]
        smaller = [i for i in unused if nbytes // _REUSE_RANGE <= self.sizes[i] < nbytes]
        if larger or smaller:
            index = min(larger, key=self.sizes.__getitem__) if larger else max(smaller, key=self.sizes.__getitem__)
            self.unused.remove(index)
            self.sizes[index] = max(self.sizes[index], nbytes)
            return index
        self.sizes.append(nbytes)
        if words:
            self.words.add(len(self.sizes) - 1)
        return len(self.sizes) - 1

    def free(self, index: int | None) -> None:
        if index is not None:
            self.unused.append(index)

    def replace(self, index: int | None, nbytes: int, words: bool = False) -> int:
        """The result of a function of one buffer, which is free after it."""
        made = self.take(nbytes, words)
        self.free(index)
        return made

    def block(
        self, residual: int | None, layer: Layer, hidden: int, made: Sequence[tuple[int, int]], after: int = 0
    ) -> int:
        """Attention or MLP with its norms: buffers, each made of the one before, then the residual's end. The first
        layer's residual is the library's argument, which nobody plans.

        Args:
            made: (bytes of the input when it is rounded first, with a scale beside it, else 0; bytes that are made).
            after: how many of these come after the one that reads the residual.
        """
        index = self.take(hidden) if layer.norms_before else None
        made = [*made, (0, hidden)] if layer.norms_after else made
        for left, (read, nbytes) in zip(reversed(range(len(made))), made, strict=True):
            scale = self.take(FLOAT32) if read else None
            index = self.replace(index, read, True) if read else index
            index = self.replace(index, nbytes)
            self.free(scale)
            self.free(residual if left == after else None)
        assert index is not None
        return index
