"""Memory that the processes of one model share: logits, and a board for the command that comes once per token.

A message through a pipe takes both ends tens of microseconds, and a GPU waits for them. On the board the first process
writes a sequence, a token, how many messages it has sent through pipes, and then the number of the command; ranks that
look at it begin when they have heard as many, mostly at once, and the first of them writes the number again when the
logits are there. Ranks that have stopped to look say so, and are woken through their pipes. What is written is seen in
that order where the processor keeps it, as those of x86 do.
"""

from __future__ import annotations

import mmap
import os
import platform
from typing import IO, Any

import numpy as np

from builder.runtime.device import Device, Room
from builder.targets.tvm_import import import_tvm

LOGITS_BYTES = 1 << 24  # most answers are smaller
BOARD_BYTES = 4096
LOOKS = 200  # at the board, for one at the pipes
COMMAND, SEQUENCE, TOKEN, TOLD, ANSWER, LOOKING = 0, 1, 2, 3, 8, 16  # places of words of 8 bytes; LOOKING: of rank 0
ORDERED = platform.machine() in ("x86_64", "AMD64")


def shared_memory() -> IO[bytes]:
    """A file without a name for a Board, all zeros."""
    file = os.fdopen(os.memfd_create("llm-build-board"), "r+b")
    file.truncate(BOARD_BYTES + LOGITS_BYTES)
    return file


class Board:
    """One process's view of it. ``logits``: float32, one axis."""

    def __init__(self, descriptor: int) -> None:
        memory = mmap.mmap(descriptor, BOARD_BYTES + LOGITS_BYTES)
        self._words = memoryview(memory)[:BOARD_BYTES].cast("q")
        self.logits: np.ndarray[Any, np.dtype[np.float32]] = np.frombuffer(memory, np.float32, offset=BOARD_BYTES)
        self._seen = 0

    def post(self, seq: int, token: int, told: int) -> None:
        """Command the ranks to decode after ``told`` messages through their pipes."""
        self._words[SEQUENCE], self._words[TOKEN], self._words[TOLD] = seq, token, told
        self._words[COMMAND] += 1

    def answered(self, looks: int = 1) -> bool:
        return any(self._words[ANSWER] == self._words[COMMAND] for _ in range(looks))

    def looking(self, rank: int) -> bool:
        return bool(self._words[LOOKING + rank])

    def look(self, rank: int, looking: bool) -> None:
        """Say whether this rank looks at the board: also while it does what it found there."""
        self._words[LOOKING + rank] = looking

    def posted(self, looks: int = 1) -> bool:
        """Whether there is a command that this process has not taken."""
        return any(self._words[COMMAND] != self._seen for _ in range(looks))

    def comes_after(self) -> int:
        """How many messages come before that command."""
        return self._words[TOLD]

    def taken(self) -> tuple[int, int]:
        """The sequence and the token of that command."""
        self._seen = self._words[COMMAND]
        return self._words[SEQUENCE], self._words[TOKEN]

    def answer(self) -> None:
        self._words[ANSWER] = self._seen


class SharedLanding:
    """Logits for the process that asks the ranks: their shape, or, where they have no room, the array."""

    def __init__(self, device: Device, board: Board) -> None:
        device.pin(board.logits)
        self._room = Room(device, import_tvm(runtime_only=True).runtime.from_dlpack(board.logits))
        self.ask = self._room.ask

    def get(self) -> Any:
        array, shared = self._room.landed()
        return array.shape if shared else array


class NoLanding:
    """Of ranks whose logits nobody reads. They are waited for all the same, and so is what goes wrong."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def ask(self, tensor: Any, shape: tuple[int, ...]) -> None: ...

    def get(self) -> None:
        self._device.tvm.sync()
