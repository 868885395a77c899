"""How fast a loaded artifact is, and what memory allows: rates in tokens per second, sizes in bytes.

A rate is a dict of JSON: the median of several runs, the slowest and the fastest, and how many they were.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np

from llm_build.formats.slicing import tp_shard_name
from llm_build.runtime import weights
from llm_build.runtime.device import Device
from llm_build.targets.tvm_import import import_tvm

RUNS = 7  # of each measurement
_MIN_RUNS = 3  # however long one takes
_MAX_SECONDS = 20.0  # of one measurement; then _MIN_RUNS runs do
_RUN_S = 0.25  # of decoding, about
MAX_TOKENS, _MIN_TOKENS = 64, 4  # of one run of decoding
_LARGEST_BUFFER = 1 << 30  # bytes that the bandwidth is measured on, at most
_CACHE_ELEMENT_BYTES = 4  # the KV cache is float32 on every target
_EMBEDDINGS, _HEADS = ("model.embed_tokens", "gpt_neox.embed_in"), ("lm_head", "embed_out")
_OF_EXPERTS = (".gate_up_proj.", ".down_proj.")  # of a mixture: all experts of a layer in one matrix
Rate = dict[str, Any]


class Engine(Protocol):
    """The part of runtime.engine.Engine that is timed."""

    metadata: dict[str, Any]
    vocab_size: int
    context: int
    chunk: int

    def add_sequence(self) -> int: ...
    def remove_sequence(self, seq: int) -> None: ...
    def rewind(self, seq: int, tokens: int) -> None: ...
    def prefill(self, seq: int, tokens: list[int]) -> Any: ...
    def decode(self, seq: int, token: int) -> Any: ...


def time_once(work: Callable[[], Any]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def time_runs(work: Callable[[], Any], undo: Callable[[], Any], runs: int = RUNS) -> list[float]:
    """Seconds of each run, ``undo`` after it left out; fewer runs where they take_tp_shard long."""
    seconds: list[float] = []
    while len(seconds) < runs and (len(seconds) < _MIN_RUNS or sum(seconds) < _MAX_SECONDS):
        seconds.append(time_once(work))
        undo()
    return seconds


def rate(units: float, seconds: list[float]) -> Rate:
    speeds = [units / each for each in seconds]
    return {"median": median(speeds), "low": min(speeds), "high": max(speeds), "runs": len(speeds)}


def some_tokens(engine: Engine, count: int) -> list[int]:
    """Tokens that look like no text: which ones they are changes no time."""
    return [int(token) for token in np.random.default_rng(1).integers(0, engine.vocab_size, count)]


def prefill_rate(engine: Engine, tokens: int, runs: int = RUNS) -> Rate:
    """Of ``tokens`` into an empty sequence, the logits of the last one included."""
    ids, sequence = some_tokens(engine, tokens), engine.add_sequence()
    seconds = time_runs(lambda: engine.prefill(sequence, ids), lambda: engine.rewind(sequence, tokens), runs)
    engine.remove_sequence(sequence)
    return rate(tokens, seconds)


def decode_rate(engine: Engine, context: int, runs: int = RUNS) -> Rate:
    """Of tokens one by one, each run from ``context`` tokens on, where there is room for MAX_TOKENS more."""
    sequence = engine.add_sequence()
    engine.prefill(sequence, some_tokens(engine, context))

    def decode(tokens: int) -> None:
        for _ in range(tokens):
            engine.decode(sequence, 1)

    decode(1)
    one = time_once(lambda: decode(1))
    engine.rewind(sequence, 2)
    tokens = min(max(int(_RUN_S / one), _MIN_TOKENS), MAX_TOKENS)
    seconds = time_runs(lambda: decode(tokens), lambda: engine.rewind(sequence, tokens), runs)
    engine.remove_sequence(sequence)
    return rate(tokens, seconds)


def weights_read(files: Mapping[str, Path], metadata: Mapping[str, Any], active: float = 1.0) -> int:
    """Bytes of weights that one token reads on each rank: all, but one row of the embedding (unless that is the head),
    and of experts the share ``active``."""
    stored, first = weights.read_index(files), tp_shard_name("", 0)
    sizes = {}
    for parameter in metadata["params"]:
        name = parameter["name"]
        location = stored[name if name in stored else name + first]
        # a file that was not split holds the parts of all ranks
        sizes[name] = location.nbytes * prod(parameter["shape"]) // prod(location.shape)
    tied = not any(name.startswith(_HEADS) for name in sizes)
    total = 0.0
    for name, nbytes in sizes.items():
        if name.startswith(_EMBEDDINGS) and not tied:
            continue
        total += nbytes * (active if any(part in f"{name}." for part in _OF_EXPERTS) else 1.0)
    return int(total)


def cache_read(metadata: Mapping[str, Any], context: int) -> int:
    """Bytes of the KV cache that one token reads at ``context`` tokens."""
    cache, window = metadata["kv_cache"], metadata["sliding_window_size"]
    seen = min(context, window) if window > 0 else context
    row = 2 * cache["num_hidden_layers"] * cache["num_key_value_heads"] * cache["head_dim"]
    return int(_CACHE_ELEMENT_BYTES * seen * row)


def read_bandwidth(nbytes: int, threads: int) -> float:
    """Bytes per second at which ``threads`` threads read a buffer of ``nbytes`` over and over."""
    size = min(nbytes, _LARGEST_BUFFER)
    parts = np.array_split(np.ones(max(size // 4, threads), np.float32), threads)
    repeat = max(1, (1 << 28) // max(size, 1))

    def read(part: Any) -> None:
        for _ in range(repeat):
            part.max()

    with ThreadPoolExecutor(threads) as pool:
        return size * repeat / min(time_once(lambda: list(pool.map(read, parts))) for _ in range(5))


def device_bandwidth(device: Device) -> float:
    """Bytes per second that a GPU reads and writes while it copies within its own memory."""
    empty, size = import_tvm(runtime_only=True).runtime.empty, 1 << 28
    source, target = (empty((size,), "uint8", device.tvm) for _ in range(2))

    def copy() -> None:
        for _ in range(8):
            source.copyto(target)
        device.tvm.sync()

    copy()
    return 2 * 8 * size / min(time_once(copy) for _ in range(5))
