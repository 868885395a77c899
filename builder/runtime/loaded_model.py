"""The functions of one loaded library, on one device: a whole model's, or those of one rank of several.

Axes: T tokens, B sequences, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from builder.core.errors import UserError
from builder.runtime import weights
from builder.runtime.device import Device, Landing, device_of
from builder.targets.cpu import check_runs_here
from builder.targets.tvm_import import import_tvm

PAGE_TOKENS = 16  # of the KV cache, as the kernels have it
Floats = np.ndarray[Any, np.dtype[np.float32]]
Ids = np.ndarray[Any, np.dtype[np.int32]]
STATE = ("add_sequence", "remove_sequence", "begin_forward", "end_forward", "popn")  # of the cache, in TVM's runtime
SEEN = ("get_query_positions", "get_num_available_pages")


class Calls:
    """The library's functions, looked up once, on a KV cache for ``sequences`` whole contexts. They return what
    ``landing`` makes of the logits."""

    def __init__(
        self,
        machine: Any,
        device: Device,
        params: list[Any],
        metadata: dict[str, Any],
        sequences: int,
        landing: Landing,
    ) -> None:
        tvm = import_tvm(runtime_only=True)
        self.metadata = metadata
        self._shape, self._device, self._landing = tvm.runtime.ShapeTuple, device, landing
        self._params = tvm_array(params)
        names = ("embed", "prefill", "decode", "batch_decode", "batch_verify")
        self._embed, self._prefill, self._decode, self._batch_decode, self._verify = (machine[name] for name in names)
        state = {name: tvm.get_global_func(f"vm.builtin.kv_state_{name}") for name in STATE}
        self._add, self._remove, self._begin, self._end, self._pop = (state[name] for name in STATE)
        seen = {name: tvm.get_global_func(f"vm.builtin.attention_kv_cache_{name}") for name in SEEN}
        self._positions, self._pages = (seen[name] for name in SEEN)
        self._chunk = metadata["prefill_chunk_size"]
        self._slides = metadata["sliding_window_size"] != -1  # tokens that left the window are not to be had again
        sizes = (sequences, sequences * metadata["context_window_size"], self._chunk, PAGE_TOKENS, 0)
        self._cache = machine["create_tir_paged_kv_cache"](*(self._shape([size]) for size in sizes))
        self._machine = machine  # it owns the functions
        self._one, self._logits = device.slot(), (metadata["vocab_size"],)
        self._one_length = self._shape([1])
        self._one_row: Any = None  # (1, 1, hidden); an object of TVM's takes 2 us to make
        self._held: Any = None  # the token
        self._graph = token_graph(device, metadata)
        self._sequences = 0
        self._prepared: int | None = None  # the sequence whose next token is
        self._layout: tuple[int, int] | None = None  # of the token that was begun last
        self._last: tuple[int, Any] = (-1, None)  # the sequence that was decoded last, and its number as TVM wants it

    def function(self, name: str) -> Any:
        """One of the library's that is no function of the graph."""
        return self._machine.module.get_function(name, query_imports=True)

    def decode_as_batch(self) -> None:
        """One token as a batch of one."""
        self._decode = self._batch_decode

    def add(self, seq: int) -> None:
        self.settle()
        self._add(self._cache, seq)
        self._sequences += 1

    def remove(self, seq: int) -> None:
        self.settle()
        self._remove(self._cache, seq)
        self._sequences -= 1

    def rewind(self, seq: int, tokens: int) -> None:
        self.settle()
        self._pop(self._cache, seq, tokens)

    def prefill(self, seq: int, ids: Ids) -> Floats:
        """Logits (V,) after the last token."""
        return self._run(self._prefill, self._embedded(ids, 1, ids.size), [seq], [ids.size], self._logits)

    def verify(self, seq: int, ids: Ids) -> Floats:
        """Logits (T, V)."""
        rows = self._embedded(ids, 1, ids.size)
        return self._run(self._verify, rows, [seq], [ids.size], (ids.size, *self._logits))

    def decode(self, seq: int, token: int) -> Floats:
        """Logits (V,). Until they are asked for a GPU waits for each line here, and from then on this for the GPU."""
        self._one.write(token)
        if self._prepared == seq:
            self._prepared = None
        else:
            self.settle()
            self._begin_token(seq)
        self._held = self._one.fetched()
        kept = None if self._layout is None else self._graph.launched(self._layout)
        self._landing.ask((kept or self._token())[0], self._logits)
        if self._layout is not None and not kept:
            self._graph.capture(self._layout, self._token)
        return self._brought()

    def prepare(self, seq: int) -> None:
        """Do for the next token what can be done before it is known, where it can be undone: pages that leave a window
        cannot be brought back, and there has to be a page for it."""
        if self._graph and self._sequences == 1 and not self._slides and self._pages(self._cache):
            self._begin_token(seq)
            self._prepared = seq

    def settle(self) -> None:
        """Undo what was prepared."""
        if self._prepared is not None:
            self._end(self._cache)
            self._pop(self._cache, self._prepared, 1)
            self._prepared = None

    def _begin_token(self, seq: int) -> None:
        """The cache is told of a token, and its tables are brought to the device. What the kernels of the only sequence
        are told by value hangs on its layout."""
        if self._last[0] != seq:
            self._last = (seq, self._shape([seq]))
        self._begin(self._cache, self._last[1], self._one_length)
        self._layout = None
        if self._graph and self._sequences == 1:
            positions = self._positions(self._cache)
            self._layout = (self._pages(self._cache), positions.data_ptr())

    def _token(self) -> tuple[Any, Any]:
        """The kernels of one token: its logits, and what they are made of."""
        embedded = self._embed(self._held, self._params)
        if self._one_row is None:
            self._one_row = self._shape((1, 1, embedded.shape[1]))
        rows = embedded._create_view(self._one_row)
        return self._decode(rows, self._cache, self._params)[0], rows

    def decode_batch(self, seqs: Sequence[int], ids: Ids) -> Floats:
        """Logits (B, V)."""
        rows = self._embedded(ids, ids.size, 1)
        return self._run(self._batch_decode, rows, seqs, [1] * ids.size, (ids.size, *self._logits))

    def _embedded(self, ids: Ids, batch: int, length: int) -> Any:
        """(batch, length, hidden). TVM's memory pool keeps a buffer of every size it ever made, and prompts are of all
        lengths: they are filled up to a power of two, or the whole chunk."""
        self.settle()
        filled = np.zeros(min(1 << (ids.size - 1).bit_length(), max(self._chunk, ids.size)), np.int32)
        filled[: ids.size] = ids
        embedded = self._embed(self._device.put(filled), self._params)
        return embedded._create_view((batch, length, embedded.shape[1]))

    def _run(
        self, function: Any, rows: Any, seqs: Sequence[int], lengths: Sequence[int], shape: tuple[int, ...]
    ) -> Floats:
        """One forward pass; all its logits."""
        if self._graph:
            self._graph.forget()
        self._begin(self._cache, self._shape(list(seqs)), self._shape(list(lengths)))
        self._landing.ask(function(rows, self._cache, self._params)[0], shape)
        return self._brought()

    def _brought(self) -> Floats:
        """The logits that were asked for."""
        self._end(self._cache)  # while they are computed
        return cast(Floats, self._landing.get())


def token_graph(device: Device, metadata: Mapping[str, Any]) -> Any:
    """For GPUs whose libraries capture nothing themselves."""
    if device.kind != "cuda" or metadata.get("cuda_graphs", True):
        return None
    from builder.runtime.token_graph import TokenGraph

    return TokenGraph(device)


def load(
    files: Mapping[str, Path], sequences: int | None, rank: int = 0, ranks: int = 1, landing: Landing | None = None
) -> Calls:
    """An artifact on this process's device: the ``rank``-th of the machine. UserError as Engine says.

    ``landing``: where logits come; None: to arrays that are the caller's.
    """
    library = find_library(files)
    device = device_of(library, rank)
    machine = load_library(library, device)
    metadata: dict[str, Any] = json.loads(str(machine["_metadata"]()))
    built_for = metadata["target"]
    if built_for["cpu"]:
        check_runs_here(built_for["cpu"], built_for["features"], library.name)
    params = device.put_all(weights.load(files, metadata["params"], rank, ranks))
    sequences = metadata["max_batch_size"] if sequences is None else sequences
    return Calls(machine, device, params, metadata, sequences, landing or device.landing())


def tvm_array(tensors: list[Any]) -> Any:
    """A list as one FFI object, so that passing it costs nothing per call."""
    import_tvm(runtime_only=True)
    import tvm_ffi

    return tvm_ffi.Array(tensors)


def find_library(files: Mapping[str, Path]) -> Path:
    found = sorted(name for name in files if name.endswith(".so"))
    if len(found) != 1:
        raise UserError(f"the artifact should hold one library (.so); found: {', '.join(found) or 'none'}", "build")
    return files[found[0]]


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
