"""A built artifact, loaded: tokens in, logits out. Needs TVM's runtime and numpy, no compiler.

Axes: T tokens, B sequences, V vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llm_build.core import system
from llm_build.core.errors import UserError
from llm_build.core.units import count_of
from llm_build.runtime.device import ranks_of
from llm_build.runtime.loaded_model import PAGE_TOKENS, Floats, Ids, LoadedModel, find_library, load_model
from llm_build.runtime.ranks import RankedModel, start_ranks

__all__ = ["PAGE_TOKENS", "Engine", "Floats", "find_library"]


class Engine:
    """One loaded artifact with its KV cache. Not for several threads at once.

    Args:
        files: the artifact's files by name.
        sequences: how many sequences may exist at once; at most the library's max_batch_size.
        group: as many ranks as the library has, already started; None: they are started.

    Tokens and logits are the host's; weights and the KV cache are on the device that the library was built for, or, for
    a library that was built for several ranks, on the devices of as many processes.

    Raises:
        UserError: a file is missing or damaged, library and weights do not belong together, or this machine cannot run
            it.
        StepError: one of several ranks ended, or said nothing for too long.
    """

    def __init__(
        self, files: Mapping[str, Path], sequences: int | None = None, group: RankedModel | None = None
    ) -> None:
        os.environ.setdefault("TVM_NUM_THREADS", str(system.cores()))
        self._model: LoadedModel | RankedModel
        if (ranks := ranks_of(find_library(files))) == 1:
            self._model = load_model(files, sequences)
        else:
            self._model = start_ranks(ranks, find_library(files)) if group is None else group
            self._model.load(files, sequences)
        self.metadata: dict[str, Any] = self._model.metadata
        self.vocab_size: int = self.metadata["vocab_size"]
        self.context: int = self.metadata["context_window_size"]
        self.chunk: int = self.metadata["prefill_chunk_size"]
        self.sequences = self.metadata["max_batch_size"] if sequences is None else sequences
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
                f"this engine has room for {count_of(self.sequences, 'sequence')}, and all of it is taken",
                "remove one, or build with a larger model.max_batch_size",
            )
        sequence, self._next = self._next, self._next + 1
        self._model.add(sequence)
        self._lengths[sequence] = 0
        return sequence

    def remove_sequence(self, seq: int) -> None:
        self._length(seq)
        self._model.remove(seq)
        del self._lengths[seq]

    def length(self, seq: int) -> int:
        """Tokens that the sequence holds."""
        return self._length(seq)

    def rewind(self, seq: int, tokens: int) -> None:
        """Forget the last ``tokens`` tokens of a sequence."""
        length = self._length(seq)
        if not 0 <= tokens <= length:
            raise UserError(f"sequence {seq} has {count_of(length, 'token')}; {tokens} cannot be taken off")
        self._model.rewind(seq, tokens)
        self._lengths[seq] = length - tokens

    def prefill(self, seq: int, tokens: Sequence[int]) -> Floats:
        """Append tokens; logits [V] after the last one."""
        ids = self._check_tokens(seq, tokens)
        logits: Floats | None = None
        for start in range(0, len(ids), self.chunk):
            logits = self._model.prefill(seq, ids[start : start + self.chunk])
        self._lengths[seq] += len(ids)
        assert logits is not None
        return logits

    def logits(self, seq: int, tokens: Sequence[int]) -> Floats:
        """Append tokens; logits [T, V] after each of them."""
        ids = self._check_tokens(seq, tokens)
        parts = [self._model.verify(seq, ids[start : start + self.chunk]) for start in range(0, len(ids), self.chunk)]
        self._lengths[seq] += len(ids)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def decode(self, seq: int, token: int) -> Floats:
        """Append one token; logits [V]. The array is the caller's."""
        length = self._length(seq)
        if not 0 <= token < self.vocab_size or length >= self.context:
            self._check_tokens(seq, [token])
        logits = self._model.decode(seq, token)
        self._lengths[seq] = length + 1
        return logits

    def decode_batch(self, seqs: Sequence[int], tokens: Sequence[int]) -> Floats:
        """Append one token to each of several sequences; logits [B, V]."""
        if len(seqs) != len(tokens) or len(set(seqs)) != len(seqs) or not seqs:
            raise UserError(
                f"decode_batch needs as many tokens as different sequences: got {len(seqs)} and {len(tokens)}"
            )
        for seq, token in zip(seqs, tokens, strict=True):
            self._check_tokens(seq, [token])
        logits = self._model.decode_batch(seqs, np.asarray(tokens, np.int32))
        for seq in seqs:
            self._lengths[seq] += 1
        return logits

    def memory_of_ranks(self) -> list[dict[str, int | None]]:
        """Bytes of each of several ranks' processes (process_memory.py); nothing for a model in this process."""
        return self._model.memory() if isinstance(self._model, RankedModel) else []

    def _length(self, seq: int) -> int:
        if seq not in self._lengths:
            raise UserError(f"there is no sequence {seq}; there are: {sorted(self._lengths) or 'none'}")
        return self._lengths[seq]

    def _check_tokens(self, seq: int, tokens: Sequence[int]) -> Ids:
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
                f"no room for {count_of(ids.size, 'more token')}: the sequence has {length} of {self.context} "
                "(context_window_size)",
                "build with a larger model.context_window_size, if the model allows it",
            )
        return ids.astype(np.int32)
