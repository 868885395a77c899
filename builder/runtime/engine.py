"""A built artifact, loaded: tokens in, logits out. Needs TVM's runtime and numpy, no compiler.

Axes: T tokens, B sequences, V vocabulary.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np

from builder.core.errors import UserError
from builder.runtime import weights
from builder.runtime.device import Device, device_of
from builder.targets.cpu import check_runs_here
from builder.targets.tvm_import import import_tvm

PAGE_TOKENS = 16  # of the KV cache, as the kernels have it
Floats = np.ndarray[Any, np.dtype[np.float32]]
Ids = np.ndarray[Any, np.dtype[np.int32]]
STATE = ("add_sequence", "remove_sequence", "begin_forward", "end_forward", "popn")  # of the cache, in TVM's runtime


class Engine:
    """One loaded artifact with its KV cache. Not for several threads at once.

    Args:
        files: the artifact's files by name.
        sequences: how many sequences may exist at once; at most the library's max_batch_size.

    Tokens and logits are the host's; weights and the KV cache are on the device that the library was built for.

    Raises:
        UserError: a file is missing or damaged, library and weights do not belong together, or this machine cannot run
            it.
    """

    def __init__(self, files: Mapping[str, Path], sequences: int | None = None) -> None:
        os.environ.setdefault("TVM_NUM_THREADS", str(len(os.sched_getaffinity(0))))
        library = find_library(files)
        device = device_of(library)
        machine = load_library(library, device)
        self.metadata: dict[str, Any] = json.loads(str(machine["_metadata"]()))
        built_for = self.metadata["target"]
        if built_for["cpu"]:
            check_runs_here(built_for["cpu"], built_for["features"], library.name)
        self.vocab_size: int = self.metadata["vocab_size"]
        self.context: int = self.metadata["context_window_size"]
        self.chunk: int = self.metadata["prefill_chunk_size"]
        self.sequences = self.metadata["max_batch_size"] if sequences is None else sequences
        params = device.put_all(weights.load(files, self.metadata["params"]))
        self._call = Calls(machine, device, params, self.sequences * self.context, self)
        self._lengths: dict[int, int] = {}
        self._next = 0

    @classmethod
    def from_folder(cls, path: Path, sequences: int | None = None) -> Engine:
        """Load dist/<name>."""
        if not path.is_dir():
            raise UserError(f"{path} is not a folder with a built model", "build")
        return cls({item.name: item for item in path.iterdir() if item.is_file()}, sequences)

    def add_sequence(self) -> int:
        """A new, empty sequence; UserError when there are as many as fit."""
        if len(self._lengths) >= self.sequences:
            raise UserError(
                f"there are {self.sequences} sequences already, which is all this engine has room for",
                "remove one, or build with a larger model.max_batch_size",
            )
        sequence, self._next = self._next, self._next + 1
        self._call.add(sequence)
        self._lengths[sequence] = 0
        return sequence

    def remove_sequence(self, seq: int) -> None:
        self._length(seq)
        self._call.remove(seq)
        del self._lengths[seq]

    def length(self, seq: int) -> int:
        """Tokens that the sequence holds."""
        return self._length(seq)

    def rewind(self, seq: int, tokens: int) -> None:
        """Forget the last ``tokens`` tokens of a sequence."""
        length = self._length(seq)
        if not 0 <= tokens <= length:
            raise UserError(f"sequence {seq} has {length} tokens; {tokens} cannot be taken off")
        self._call.rewind(seq, tokens)
        self._lengths[seq] = length - tokens

    def prefill(self, seq: int, tokens: Sequence[int]) -> Floats:
        """Append tokens; logits [V] after the last one."""
        ids = self._checked(seq, tokens)
        logits: Floats | None = None
        for start in range(0, len(ids), self.chunk):
            logits = self._call.prefill(seq, ids[start : start + self.chunk])
        self._lengths[seq] += len(ids)
        assert logits is not None
        return logits

    def logits(self, seq: int, tokens: Sequence[int]) -> Floats:
        """Append tokens; logits [T, V] after each of them."""
        ids = self._checked(seq, tokens)
        parts = [self._call.verify(seq, ids[start : start + self.chunk]) for start in range(0, len(ids), self.chunk)]
        self._lengths[seq] += len(ids)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def decode(self, seq: int, token: int) -> Floats:
        """Append one token; logits [V]. The array is the caller's."""
        length = self._length(seq)
        if not 0 <= token < self.vocab_size or length >= self.context:
            self._checked(seq, [token])
        logits = self._call.decode(seq, token)
        self._lengths[seq] = length + 1
        return logits

    def decode_batch(self, seqs: Sequence[int], tokens: Sequence[int]) -> Floats:
        """Append one token to each of several sequences; logits [B, V]."""
        if len(seqs) != len(tokens) or len(set(seqs)) != len(seqs) or not seqs:
            raise UserError(
                f"decode_batch needs as many tokens as different sequences: got {len(seqs)} and {len(tokens)}"
            )
        for seq, token in zip(seqs, tokens, strict=True):
            self._checked(seq, [token])
        logits = self._call.decode_batch(seqs, np.asarray(tokens, np.int32))
        for seq in seqs:
            self._lengths[seq] += 1
        return logits

    def _length(self, seq: int) -> int:
        if seq not in self._lengths:
            raise UserError(f"there is no sequence {seq}; there are: {sorted(self._lengths) or 'none'}")
        return self._lengths[seq]

    def _checked(self, seq: int, tokens: Sequence[int]) -> Ids:
        """The tokens as an array, if they are tokens and fit."""
        length = self._length(seq)
        ids = np.asarray(tokens, np.int64)
        if ids.ndim != 1 or not ids.size:
            raise UserError(f"expected a non-empty list of tokens, got shape {list(ids.shape)}")
        if ids.min() < 0 or ids.max() >= self.vocab_size:
            wrong = ids[(ids < 0) | (ids >= self.vocab_size)][0]
            raise UserError(f"token {wrong} is out of range: this model has tokens 0 to {self.vocab_size - 1}")
        if length + ids.size > self.context:
            raise UserError(
                f"{ids.size} more tokens do not fit: the sequence has {length} of {self.context} (context_window_size)",
                "build with a larger model.context_window_size, if the model allows it",
            )
        return ids.astype(np.int32)


class Calls:
    """The library's functions, looked up once, on a KV cache for ``tokens`` tokens."""

    def __init__(self, machine: Any, device: Device, params: list[Any], tokens: int, engine: Engine) -> None:
        tvm = import_tvm(runtime_only=True)
        self._shape, self._device = tvm.runtime.ShapeTuple, device
        self._params = tvm_array(params)
        names = ("embed", "prefill", "decode", "batch_decode", "batch_verify")
        self._embed, self._prefill, self._decode, self._batch_decode, self._verify = (machine[name] for name in names)
        state = {name: tvm.get_global_func(f"vm.builtin.kv_state_{name}") for name in STATE}
        self._add, self._remove, self._begin, self._end, self._pop = (state[name] for name in STATE)
        sizes = (engine.sequences, tokens, engine.chunk, PAGE_TOKENS, 0)
        self._cache = machine["create_tir_paged_kv_cache"](*(self._shape([size]) for size in sizes))
        self._machine, self._chunk = machine, engine.chunk  # the machine owns the functions
        self._one = device.slot()
        self._one_length = self._shape([1])

    def add(self, seq: int) -> None:
        self._add(self._cache, seq)

    def remove(self, seq: int) -> None:
        self._remove(self._cache, seq)

    def rewind(self, seq: int, tokens: int) -> None:
        self._pop(self._cache, seq, tokens)

    def prefill(self, seq: int, ids: Ids) -> Floats:
        return cast(Floats, self._run(self._prefill, self._embedded(ids, 1, ids.size), [seq], [ids.size])[0])

    def verify(self, seq: int, ids: Ids) -> Floats:
        return self._run(self._verify, self._embedded(ids, 1, ids.size), [seq], [ids.size])

    def decode(self, seq: int, token: int) -> Floats:
        embedded = self._embed(self._one.holding(token), self._params)
        rows = embedded._create_view((1, 1, embedded.shape[1]))
        self._begin(self._cache, self._shape([seq]), self._one_length)
        logits = self._device.take(self._decode(rows, self._cache, self._params)[0])
        self._end(self._cache)
        return cast(Floats, logits.reshape(-1))

    def decode_batch(self, seqs: Sequence[int], ids: Ids) -> Floats:
        return self._run(self._batch_decode, self._embedded(ids, ids.size, 1), seqs, [1] * ids.size)

    def _embedded(self, ids: Ids, batch: int, length: int) -> Any:
        """(batch, length, hidden). TVM's memory pool keeps a buffer of every size it ever made, and prompts are of all
        lengths: they are filled up to a power of two, or the whole chunk."""
        filled = np.zeros(min(1 << (ids.size - 1).bit_length(), max(self._chunk, ids.size)), np.int32)
        filled[: ids.size] = ids
        embedded = self._embed(self._device.put(filled), self._params)
        return embedded._create_view((batch, length, embedded.shape[1]))

    def _run(self, function: Any, rows: Any, seqs: Sequence[int], lengths: Sequence[int]) -> Floats:
        """One forward pass; all its logits, (rows of logits, V)."""
        self._begin(self._cache, self._shape(list(seqs)), self._shape(list(lengths)))
        logits = self._device.take(function(rows, self._cache, self._params)[0])
        self._end(self._cache)
        return cast(Floats, logits.reshape(-1, logits.shape[-1]))


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
