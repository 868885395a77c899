"""The functions of one loaded library, on one device: a whole model's, or those of one rank of several.

Axes: T tokens, B sequences, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from llm_build.core.errors import UserError
from llm_build.runtime import weights
from llm_build.runtime.device import Device, LogitsSink, device_of
from llm_build.targets.cpu import check_runs_here
from llm_build.targets.tvm_import import import_tvm

PAGE_TOKENS = 16  # of the KV cache, as the kernels have it
Floats = np.ndarray[Any, np.dtype[np.float32]]
Ids = np.ndarray[Any, np.dtype[np.int32]]
_CACHE_CALLS = (
    "add_sequence",
    "remove_sequence",
    "begin_forward",
    "end_forward",
    "popn",
)  # of the cache, in TVM's runtime
_CACHE_QUERIES = ("get_query_positions", "get_num_available_pages")


class LoadedModel:
    """The library's functions, looked up once, on a KV cache for ``sequences`` whole contexts. They return what
    ``sink`` gives for the logits."""

    def __init__(
        self,
        machine: Any,
        device: Device,
        params: list[Any],
        metadata: dict[str, Any],
        sequences: int,
        sink: LogitsSink,
    ) -> None:
        tvm = import_tvm(runtime_only=True)
        self.metadata = metadata
        self._shape, self._device, self._sink = tvm.runtime.ShapeTuple, device, sink
        self._params = _ffi_array(params)
        names = ("embed", "prefill", "decode", "batch_decode", "batch_verify")
        self._embed, self._prefill, self._decode, self._batch_decode, self._verify = (machine[name] for name in names)
        calls = {name: tvm.get_global_func(f"vm.builtin.kv_state_{name}") for name in _CACHE_CALLS}
        self._add, self._remove, self._begin, self._end, self._pop = (calls[name] for name in _CACHE_CALLS)
        queries = {name: tvm.get_global_func(f"vm.builtin.attention_kv_cache_{name}") for name in _CACHE_QUERIES}
        self._positions, self._free_pages = (queries[name] for name in _CACHE_QUERIES)
        self._chunk = metadata["prefill_chunk_size"]
        self._slides = metadata["sliding_window_size"] != -1  # tokens that left the window cannot be brought back
        sizes = (sequences, sequences * metadata["context_window_size"], self._chunk, PAGE_TOKENS, 0)
        self._cache = machine["create_tir_paged_kv_cache"](*(self._shape([size]) for size in sizes))
        self._machine = machine  # it owns the functions
        self._token_slot, self._logits_shape = device.token_slot(), (metadata["vocab_size"],)
        self._one_length = self._shape([1])
        self._one_row: Any = None  # (1, 1, hidden); an object of TVM's takes 2 us to make
        self._token: Any = None  # on the device
        self._graph = _token_graph(device, metadata)
        self._sequences = 0
        self._prepared: int | None = None  # the sequence whose next token is
        self._layout: tuple[int, int] | None = None  # of the cache, for the token that was begun last
        self._last: tuple[int, Any] = (-1, None)  # the sequence that was decoded last, and its number as TVM wants it

    def function(self, name: str) -> Any:
        """One of the library's that is no function of the graph."""
        return self._machine.module.get_function(name, query_imports=True)

    def decode_as_batch(self) -> None:
        """One token as a batch of one."""
        self._decode = self._batch_decode

    def add(self, seq: int) -> None:
        self.discard_prepared()
        self._add(self._cache, seq)
        self._sequences += 1

    def remove(self, seq: int) -> None:
        self.discard_prepared()
        self._remove(self._cache, seq)
        self._sequences -= 1

    def rewind(self, seq: int, tokens: int) -> None:
        self.discard_prepared()
        self._pop(self._cache, seq, tokens)

    def prefill(self, seq: int, ids: Ids) -> Floats:
        """Logits (V,) after the last token."""
        return self._run(self._prefill, self._embed_rows(ids, 1, ids.size), [seq], [ids.size], self._logits_shape)

    def verify(self, seq: int, ids: Ids) -> Floats:
        """Logits (T, V)."""
        rows = self._embed_rows(ids, 1, ids.size)
        return self._run(self._verify, rows, [seq], [ids.size], (ids.size, *self._logits_shape))

    def decode(self, seq: int, token: int) -> Floats:
        """Logits (V,). Until they are asked for a GPU waits for each line here, and from then on this for the GPU."""
        self._token_slot.write(token)
        if self._prepared == seq:
            self._prepared = None
        else:
            self.discard_prepared()
            self._begin_token(seq)
        self._token = self._token_slot.tensor()
        outputs = None if self._layout is None else self._graph.launch(self._layout)
        self._sink.request((outputs or self._run_token())[0], self._logits_shape)
        if self._layout is not None and not outputs:
            self._graph.capture(self._layout, self._run_token)
        return self._wait_logits()

    def prepare(self, seq: int) -> None:
        """Do for the next token what can be done before it is known, where it can be undone: pages that leave a window
        cannot be brought back, and there has to be a page for it."""
        if self._graph and self._sequences == 1 and not self._slides and self._free_pages(self._cache):
            self._begin_token(seq)
            self._prepared = seq

    def discard_prepared(self) -> None:
        """Undo ``prepare``."""
        if self._prepared is not None:
            self._end(self._cache)
            self._pop(self._cache, self._prepared, 1)
            self._prepared = None

    def _begin_token(self, seq: int) -> None:
        """Enter a token into the cache, and bring its tables to the device. What the kernels of the only sequence get
        by value depends on the layout of the cache."""
        if self._last[0] != seq:
            self._last = (seq, self._shape([seq]))
        self._begin(self._cache, self._last[1], self._one_length)
        self._layout = None
        if self._graph and self._sequences == 1:
            positions = self._positions(self._cache)
            self._layout = (self._free_pages(self._cache), positions.data_ptr())

    def _run_token(self) -> tuple[Any, Any]:
        """The kernels of one token: its logits, and the embedding that they are made of."""
        embedded = self._embed(self._token, self._params)
        if self._one_row is None:
            self._one_row = self._shape((1, 1, embedded.shape[1]))
        rows = embedded._create_view(self._one_row)
        return self._decode(rows, self._cache, self._params)[0], rows

    def decode_batch(self, seqs: Sequence[int], ids: Ids) -> Floats:
        """Logits (B, V)."""
        rows = self._embed_rows(ids, ids.size, 1)
        return self._run(self._batch_decode, rows, seqs, [1] * ids.size, (ids.size, *self._logits_shape))

    def _embed_rows(self, ids: Ids, batch: int, length: int) -> Any:
        """(batch, length, hidden). TVM's memory pool keeps a buffer of every size it ever made, and prompts are of all
        lengths: they are padded to a power of two, or the whole chunk."""
        self.discard_prepared()
        padded = np.zeros(min(1 << (ids.size - 1).bit_length(), max(self._chunk, ids.size)), np.int32)
        padded[: ids.size] = ids
        embedded = self._embed(self._device.put(padded), self._params)
        return embedded._create_view((batch, length, embedded.shape[1]))

    def _run(
        self, function: Any, rows: Any, seqs: Sequence[int], lengths: Sequence[int], shape: tuple[int, ...]
    ) -> Floats:
        """One forward pass; all its logits."""
        if self._graph:
            self._graph.invalidate()
        self._begin(self._cache, self._shape(list(seqs)), self._shape(list(lengths)))
        self._sink.request(function(rows, self._cache, self._params)[0], shape)
        return self._wait_logits()

    def _wait_logits(self) -> Floats:
        """The logits that were requested."""
        self._end(self._cache)  # while they are computed
        return cast(Floats, self._sink.wait())


def _token_graph(device: Device, metadata: Mapping[str, Any]) -> Any:
    """For GPUs whose libraries capture nothing themselves."""
    if device.kind != "cuda" or metadata.get("cuda_graphs", True):
        return None
    from llm_build.runtime.token_graph import TokenGraph

    return TokenGraph(device)


def load_model(
    files: Mapping[str, Path], sequences: int | None, rank: int = 0, ranks: int = 1, sink: LogitsSink | None = None
) -> LoadedModel:
    """An artifact on this process's device: the ``rank``-th of the machine. UserError as Engine says.

    ``sink``: where logits come; None: to arrays that are the caller's.
    """
    library = find_library(files)
    device = device_of(library, rank)
    machine = load_library(library, device)
    metadata: dict[str, Any] = json.loads(str(machine["_metadata"]()))
    built_for = metadata["target"]
    if built_for["cpu"]:
        check_runs_here(built_for["cpu"], built_for["features"], built_for["triple"], library.name)
    params = device.put_all(weights.load_weights(files, metadata["params"], rank, ranks))
    sequences = metadata["max_batch_size"] if sequences is None else sequences
    return LoadedModel(machine, device, params, metadata, sequences, sink or device.logits_sink())


def _ffi_array(tensors: list[Any]) -> Any:
    """A list as one FFI object, so that passing it costs nothing per call."""
    import_tvm(runtime_only=True)
    import tvm_ffi

    return tvm_ffi.Array(tensors)


def find_library(files: Mapping[str, Path]) -> Path:
    libraries = sorted(name for name in files if name.endswith(".so"))
    if len(libraries) != 1:
        raise UserError(f"the artifact should hold one library (.so); found: {', '.join(libraries) or 'none'}", "build")
    return files[libraries[0]]


def load_library(path: Path, device: Device) -> Any:
    """The library's virtual machine on a device."""
    tvm = import_tvm(runtime_only=True)
    from tvm.runtime.vm import VirtualMachine

    try:
        load = tvm.get_global_func("ffi.Module.load_from_file.so")  # by kind: a blob of the store has no suffix
        return VirtualMachine(load(str(path.resolve()), "so"), device.tvm)
    except Exception as error:
        raise UserError(
            f"{path.name} cannot be loaded with apache-tvm {tvm.__version__}: {str(error).strip().splitlines()[-1]}",
            "was it built with another version of apache-tvm? build",
        ) from error
