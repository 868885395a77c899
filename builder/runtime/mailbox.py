"""Memory that the processes of one model share: logits, and a mailbox for the command that comes once per token.

A message through a pipe takes both ends tens of microseconds, and a GPU waits for them. Into the mailbox the first
process writes a sequence, a token, how many messages it has sent through pipes, and then the number of the command.
Ranks that poll the mailbox begin when they have received as many messages, mostly at once, and the first of them writes
the number again when the logits are there. Ranks that have stopped polling say so, and are woken through their pipes.
What is written is seen in that order where the processor keeps it, as those of x86 do.
"""

from __future__ import annotations

import mmap
import platform
from typing import IO, Any

import numpy as np

from llm_build.core import system
from llm_build.runtime.device import Device, HostBuffer
from llm_build.targets.tvm_import import import_tvm

_LOGITS_BYTES = 1 << 24  # most answers are smaller
_COMMAND_BYTES = 4096
POLLS = 200  # of the mailbox, for one of the pipes
_COMMAND, _SEQUENCE, _TOKEN, _MESSAGES, _ANSWER, _POLLING = 0, 1, 2, 3, 8, 16  # words of 8 bytes; _POLLING: of rank 0
ORDERED = platform.machine() in ("x86_64", "AMD64")


def shared_memory() -> IO[bytes]:
    """A file without a name for a CommandMailbox, all zeros."""
    file = system.memory_file("llm-build-mailbox")
    file.truncate(_COMMAND_BYTES + _LOGITS_BYTES)
    return file


class CommandMailbox:
    """One process's view of it. ``logits``: float32, one axis."""

    def __init__(self, descriptor: int) -> None:
        memory = mmap.mmap(descriptor, _COMMAND_BYTES + _LOGITS_BYTES)
        self._words = memoryview(memory)[:_COMMAND_BYTES].cast("q")
        self.logits: np.ndarray[Any, np.dtype[np.float32]] = np.frombuffer(memory, np.float32, offset=_COMMAND_BYTES)
        self._taken = 0

    def post(self, seq: int, token: int, messages: int) -> None:
        """Command the ranks to decode after that many messages through their pipes."""
        self._words[_SEQUENCE], self._words[_TOKEN], self._words[_MESSAGES] = seq, token, messages
        self._words[_COMMAND] += 1

    def is_answered(self, polls: int = 1) -> bool:
        return any(self._words[_ANSWER] == self._words[_COMMAND] for _ in range(polls))

    def is_polling(self, rank: int) -> bool:
        return bool(self._words[_POLLING + rank])

    def set_polling(self, rank: int, polling: bool) -> None:
        """Say whether this rank polls the mailbox: also while it does what it read there."""
        self._words[_POLLING + rank] = polling

    def has_command(self, polls: int = 1) -> bool:
        """Whether there is a command that this process has not taken."""
        return any(self._words[_COMMAND] != self._taken for _ in range(polls))

    def messages_before(self) -> int:
        """How many messages come before that command."""
        return self._words[_MESSAGES]

    def take(self) -> tuple[int, int]:
        """The sequence and the token of that command."""
        self._taken = self._words[_COMMAND]
        return self._words[_SEQUENCE], self._words[_TOKEN]

    def answer(self) -> None:
        self._words[_ANSWER] = self._taken


class SharedMemorySink:
    """Logits for the process that commands the ranks: their shape, or the array itself where it is too large for the
    shared memory."""

    def __init__(self, device: Device, mailbox: CommandMailbox) -> None:
        device.pin(mailbox.logits)
        self._buffer = HostBuffer(device, import_tvm(runtime_only=True).runtime.from_dlpack(mailbox.logits))
        self.request = self._buffer.request

    def wait(self) -> Any:
        array, shared = self._buffer.wait()
        return array.shape if shared else array


class DiscardSink:
    """Of ranks whose logits nobody reads. They are waited for all the same, and so is what goes wrong."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def request(self, tensor: Any, shape: tuple[int, ...]) -> None: ...

    def wait(self) -> None:
        self._device.tvm.sync()
