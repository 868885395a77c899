"""A library for several ranks, run by as many processes of this machine: one command for all, the first rank answers.

Each process is ``python -m llm_build.runtime.rank``. Logits come through memory that it shares with this one, and so do
the commands for one token (runtime/mailbox.py), while these take less than SPIN_S; all else through pipes. Every
wait here has a limit, and a process that ends, is killed or reports an error ends all of them. They end
by themselves when this process is gone: each watches a pipe whose other end only this process has.
"""

from __future__ import annotations

import math
import os
import pickle
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from llm_build.core import system
from llm_build.core.errors import BuildError, StepError
from llm_build.runtime.device import kind_of
from llm_build.runtime.loaded_model import Floats, Ids
from llm_build.runtime.mailbox import ORDERED, POLLS, CommandMailbox, shared_memory

MEET_S = 120.0  # until all ranks have found each other; loading tvm and torch is in it
_LOAD_BYTES_PER_S, _LOAD_S = 10e6, 120.0  # the slowest disk that is waited for, and what is added
ANSWER_S = 600.0  # for the logits of one chunk of a prompt
SPIN_S = 0.02  # on GPUs, before this process sleeps: a token's answer comes in less, and to wake up takes 50 us
_NAP_S = 0.001  # between polls of the mailbox, then
_SLOWER = 1.25  # a token takes this much longer than the one before, at most: one that was late says nothing
_PATIENCE_S = 0.001  # on GPUs, before a rank sleeps: the command after an answer comes soon
_GRACE_S = 0.5  # after the first rank failed: another one's end may be the cause
_LOG_BYTES = 2000  # of the end of a log that go into a message


@dataclass(frozen=True, slots=True)
class Rank:
    """One process: messages come and go through ``channel``; ``log``: its standard output and error."""

    number: int
    process: subprocess.Popen[bytes]
    channel: Connection
    lifeline: Connection
    log: Path


class RankedModel:
    """What LoadedModel does, done by several ranks."""

    def __init__(self, ranks: Sequence[Rank], folder: Path, mailbox: CommandMailbox, spin_s: float) -> None:
        self._ranks, self._mailbox, self._spin_s = tuple(ranks), mailbox, spin_s
        self._token_s = math.inf  # that a token takes
        self._messages = 0  # that all ranks were sent
        self._selector = selectors.DefaultSelector()
        for rank in self._ranks:
            self._selector.register(rank.channel, selectors.EVENT_READ, rank)
        self._finalizer = weakref.finalize(self, _end_ranks, self._ranks, folder)
        self.metadata: dict[str, Any] = {}

    @property
    def pids(self) -> list[int]:
        """Of the processes, by rank."""
        return [rank.process.pid for rank in self._ranks]

    def close(self) -> None:
        """End all processes; nothing can be asked of them afterwards."""
        self._finalizer()

    def meet(self) -> None:
        """Wait until all ranks have found each other."""
        self._from_all(MEET_S, "waited for the other ranks to come up")

    def load(self, files: Mapping[str, Path], sequences: int | None) -> None:
        """Have each rank load its part, instead of what it had. UserError as Engine says; it ends the ranks."""
        stored = sum(path.stat().st_size for path in files.values() if path.is_file())
        self._send_all(("load", {name: str(path.absolute()) for name, path in files.items()}, sequences))
        answers = self._from_all(_LOAD_S + stored / _LOAD_BYTES_PER_S, "loaded the weights")
        self.metadata = answers[0]

    def add(self, seq: int) -> None:
        self._call("add", seq)

    def remove(self, seq: int) -> None:
        if self._finalizer.alive:  # a generation that was cut short gives its sequence back all the same
            self._call("remove", seq)

    def rewind(self, seq: int, tokens: int) -> None:
        self._call("rewind", seq, tokens)

    def prefill(self, seq: int, ids: Ids) -> Floats:
        return self._logits("prefill", seq, ids)

    def verify(self, seq: int, ids: Ids) -> Floats:
        return self._logits("verify", seq, ids)

    def decode(self, seq: int, token: int) -> Floats:
        started, quick = time.monotonic(), ORDERED and self._token_s < self._spin_s
        logits = self._decode_by_mailbox(seq, token) if quick else self._logits("decode", seq, token)
        self._token_s = min(time.monotonic() - started, _SLOWER * self._token_s)
        return logits

    def decode_batch(self, seqs: Sequence[int], ids: Ids) -> Floats:
        return self._logits("decode_batch", list(seqs), ids)

    def memory(self) -> list[dict[str, int | None]]:
        """Of each rank's process, in bytes (process_memory.py)."""
        self._send_all(("memory",))
        return self._from_all(ANSWER_S, "was asked for its memory")

    def _call(self, name: str, *arguments: Any) -> Any:
        self._send_all((name, *arguments))
        return self._first_answer(self._ranks[:1], ANSWER_S, "computed")[1]

    def _logits(self, name: str, *arguments: Any) -> Floats:
        """A copy of the logits that rank 0 left in the shared memory, or those that it sent as they had no room."""
        answer = self._call(name, *arguments)
        if isinstance(answer, np.ndarray):
            return answer
        return self._mailbox.logits[: math.prod(answer)].reshape(answer).copy()

    def _decode_by_mailbox(self, seq: int, token: int) -> Floats:
        """``decode`` through the mailbox. This process sleeps for half of the time, in which the ranks are busiest:
        its core may be the other half of one of theirs."""
        self._check_alive()
        self._mailbox.post(seq, token, self._messages)
        started, polling, nap_s = time.monotonic(), list(self._ranks), self._token_s / 2
        while True:
            _send(("poll",), [rank for rank in polling if not self._mailbox.is_polling(rank.number)])
            polling = [rank for rank in polling if self._mailbox.is_polling(rank.number)]
            if nap_s:  # a sleep of no time takes 70 us
                time.sleep(nap_s)
            if self._mailbox.is_answered(POLLS):
                return self._mailbox.logits[: self.metadata["vocab_size"]].copy()
            for key, _ in self._selector.select(0):
                self._receive(key.data, "computed")
            waited = time.monotonic() - started
            nap_s = 0.0 if waited < self._spin_s else _NAP_S
            if waited > ANSWER_S:
                self._time_out(self._ranks[:1], ANSWER_S)

    def _send_all(self, message: Any) -> None:
        self._check_alive()
        self._messages += 1
        _send(message, self._ranks)

    def _check_alive(self) -> None:
        if not self._finalizer.alive:
            raise StepError("the ranks of this model have ended", "load it again")

    def _from_all(self, limit_s: float, doing: str) -> list[Any]:
        answers: dict[int, Any] = {}
        until = time.monotonic() + limit_s
        while len(answers) < len(self._ranks):
            waited_for = [rank for rank in self._ranks if rank.number not in answers]
            number, answer = self._first_answer(waited_for, until - time.monotonic(), doing)
            answers[number] = answer
        return [answers[rank.number] for rank in self._ranks]

    def _first_answer(self, waited_for: Sequence[Rank], limit_s: float, doing: str) -> tuple[int, Any]:
        """The first answer of one of these ranks; a failure of any rank ends all."""
        until, numbers = time.monotonic() + limit_s, {rank.number for rank in waited_for}
        while ready := self._readable(until):
            for key, _ in ready:
                content = self._receive(key.data, doing)
                if key.data.number in numbers:
                    return key.data.number, content
        self._time_out(waited_for, limit_s)
        raise AssertionError

    def _receive(self, rank: Rank, doing: str) -> Any:
        """The content of a rank's answer; when the rank failed, all ranks end and its error is raised."""
        try:
            kind, content = rank.channel.recv()
        except (EOFError, OSError):
            self._fail(rank, None, doing)
        if kind != "answer":
            self._fail(rank, content, doing)
        return content

    def _readable(self, until: float) -> list[tuple[selectors.SelectorKey, int]]:
        """The channels that have a message."""
        spins = time.monotonic() + self._spin_s
        while time.monotonic() < spins:
            if ready := self._selector.select(0):
                return ready
        return self._selector.select(max(until - time.monotonic(), 0))

    def _time_out(self, late: Sequence[Rank], limit_s: float) -> None:
        for rank in late:
            rank.process.send_signal(signal.SIGABRT)  # it writes where it is into its log
        time.sleep(_GRACE_S)
        logs = "\n".join(f"rank {rank.number}:\n{_log_tail(rank.log)}" for rank in late)
        numbers = ", ".join(str(rank.number) for rank in late)
        message = f"rank {numbers} of {len(self._ranks)} gave no answer in {limit_s:.0f} s"
        self._close_with(StepError(f"{message}; the logs end with:\n{logs}", "build again"))

    def _fail(self, rank: Rank, error: BuildError | None, doing: str) -> None:
        """End all ranks and raise what went wrong: a process that died, before what another one said of it."""
        if error is not None and not isinstance(error, StepError):
            self._close_with(error)
        until = time.monotonic() + _GRACE_S
        while (dead := self._dead_rank(rank if error is None else None)) is None and time.monotonic() < until:
            time.sleep(0.02)
        if dead is not None:
            count, log = len(self._ranks), _log_tail(dead.log)
            message = f"rank {dead.number} of {count} {_exit_cause(dead.process.returncode)} while it {doing}"
            self._close_with(StepError(message + (f"; its log ends with:\n{log}" if log else "")))
        self._close_with(
            error or StepError(f"rank {rank.number} of {len(self._ranks)} closed its pipe while it {doing}")
        )

    def _dead_rank(self, silent: Rank | None) -> Rank | None:
        """A process that has ended by itself: one that was killed before one that gave up."""
        ended = [rank for rank in self._ranks if rank.process.poll() is not None]
        killed = [rank for rank in ended if rank.process.returncode < 0]
        return next(iter(killed), silent if silent in ended else None)

    def _close_with(self, error: BuildError) -> None:
        self.close()
        raise error


def start_ranks(count: int, library: Path) -> RankedModel:
    """Start ``count`` ranks, which find each other; ``library`` says for what device.

    Raises:
        UserError: this machine has no such device, or not what the ranks talk through.
        StepError: a rank ended, or they did not find each other in time.
    """
    folder = Path(tempfile.mkdtemp(prefix="llm-build-ranks-"))
    spin_s, patience_s = (0.0, 0.0) if kind_of(library) == "cpu" else (SPIN_S, _PATIENCE_S)  # ranks need all cores
    ranks: list[Rank] = []
    try:
        with shared_memory() as memory:
            mailbox = CommandMailbox(memory.fileno())
            for number in range(count):
                ranks.append(_start_rank(number, count, memory.fileno(), patience_s, folder, library))
    except BaseException:
        _end_ranks(ranks, folder)
        raise
    model = RankedModel(ranks, folder, mailbox, spin_s)
    try:
        model.meet()
    except BaseException:
        model.close()
        raise
    return model


def _send(message: Any, ranks: Sequence[Rank]) -> None:
    content = pickle.dumps(message)
    for rank in ranks:
        try:
            rank.channel.send_bytes(content)
        except OSError:  # it is gone: waiting for its answer says how
            continue


def _start_rank(number: int, count: int, mailbox: int, patience_s: float, folder: Path, library: Path) -> Rank:
    ours, theirs = Pipe()
    watched, lifeline = Pipe(duplex=False)
    log = folder / f"rank-{number}.log"
    words = [number, count, theirs.fileno(), watched.fileno(), mailbox, patience_s, folder, library.absolute()]
    with theirs, watched, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module(), *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=_environment(count),
            pass_fds=(theirs.fileno(), watched.fileno(), mailbox),
        )  # fmt: skip
    return Rank(number, process, ours, lifeline, log)


def module() -> str:
    """What each process runs; by import, so that it is in the identity of steps that run a library."""
    from llm_build.runtime import rank

    return rank.__name__


def _environment(count: int) -> dict[str, str]:
    """The threads of this process are shared out, and not bound to cores: every rank would take the first ones. gloo
    talks through the loopback device. A rank's graphs and other calls of NCCL come one after the other, and waiting for
    what might run beside a graph costs 4 us a call."""
    threads = int(os.environ.get("TVM_NUM_THREADS", system.cores()))
    return {
        **os.environ,
        "TVM_NUM_THREADS": str(max(threads // count, 1)),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TVM_BIND_THREADS": "0",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_GRAPH_MIXING_SUPPORT": "0",
    }


def _end_ranks(ranks: Sequence[Rank], folder: Path) -> None:
    """Kill every process and wait for its end."""
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.kill()
    for rank in ranks:
        rank.process.wait()
        rank.channel.close()
        rank.lifeline.close()
    shutil.rmtree(folder, ignore_errors=True)


def _exit_cause(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _log_tail(log: Path) -> str:
    try:
        return log.read_bytes()[-_LOG_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""
