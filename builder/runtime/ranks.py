"""A library for several ranks, run by as many processes of this machine: one command for all, the first rank answers.

Each process is ``python -m builder.runtime.rank``. Logits come through memory that it shares with this one, and so do
the commands for one token (runtime/mailbox.py), while these take less than SPIN_S; all else through pipes. Every
wait here has a limit, and a process that ends, is killed or says that something went wrong ends all of them. They end
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

from builder.core.errors import BuildError, StepError
from builder.runtime.device import kind_of
from builder.runtime.loaded_model import Floats, Ids
from builder.runtime.mailbox import LOOKS, ORDERED, Board, shared_memory

MEET_S = 120.0  # until all ranks have found each other; loading tvm and torch is in it
LOAD_BYTES_PER_S, LOAD_S = 10e6, 120.0  # the slowest disk that is waited for, and what is added
ANSWER_S = 600.0  # for the logits of one chunk of a prompt
SPIN_S = 0.02  # on GPUs, before this process sleeps: a token's answer comes in less, and to wake up takes 50 us
NAP_S = 0.001  # between looks at the board, then
LATER = 1.25  # a token takes this much longer than the one before, at most: one that was late says nothing
PATIENCE_S = 0.001  # on GPUs, before a rank sleeps: the command after an answer comes soon
LAST_WORDS_S = 0.5  # after the first rank failed: another one's end may be what it failed of
LOG_BYTES = 2000  # of the end of a log that go into a message


@dataclass(frozen=True, slots=True)
class Rank:
    """One process: what it is told comes and goes through ``channel``; ``log``: its standard output and error."""

    number: int
    process: subprocess.Popen[bytes]
    channel: Connection
    lifeline: Connection
    log: Path


class RankedCalls:
    """What calls.Calls does, done by several ranks."""

    def __init__(self, ranks: Sequence[Rank], folder: Path, board: Board, spin_s: float) -> None:
        self._ranks, self._board, self._spin_s = tuple(ranks), board, spin_s
        self._token_s = math.inf  # that a token takes
        self._told = 0  # messages to all ranks
        self._selector = selectors.DefaultSelector()
        for rank in self._ranks:
            self._selector.register(rank.channel, selectors.EVENT_READ, rank)
        self._finalizer = weakref.finalize(self, end, self._ranks, folder)
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
        self._tell(("load", {name: str(path.absolute()) for name, path in files.items()}, sequences))
        answers = self._from_all(LOAD_S + stored / LOAD_BYTES_PER_S, "loaded the weights")
        self.metadata = answers[0]

    def add(self, seq: int) -> None:
        self._ask("add", seq)

    def remove(self, seq: int) -> None:
        if self._finalizer.alive:  # a generation that was cut short gives its sequence back all the same
            self._ask("remove", seq)

    def rewind(self, seq: int, tokens: int) -> None:
        self._ask("rewind", seq, tokens)

    def prefill(self, seq: int, ids: Ids) -> Floats:
        return self._floats("prefill", seq, ids)

    def verify(self, seq: int, ids: Ids) -> Floats:
        return self._floats("verify", seq, ids)

    def decode(self, seq: int, token: int) -> Floats:
        started, quick = time.monotonic(), ORDERED and self._token_s < self._spin_s
        found = self._posted(seq, token) if quick else self._floats("decode", seq, token)
        self._token_s = min(time.monotonic() - started, LATER * self._token_s)
        return found

    def decode_batch(self, seqs: Sequence[int], ids: Ids) -> Floats:
        return self._floats("decode_batch", list(seqs), ids)

    def memory(self) -> list[dict[str, int | None]]:
        """Of each rank's process, in bytes (process_memory.py)."""
        self._tell(("memory",))
        return self._from_all(ANSWER_S, "was asked for its memory")

    def _ask(self, name: str, *arguments: Any) -> Any:
        self._tell((name, *arguments))
        return self._first_answer(self._ranks[:1], ANSWER_S, "computed")[1]

    def _floats(self, name: str, *arguments: Any) -> Floats:
        """A copy of the logits that rank 0 left in the shared memory, or those that it sent as they had no room."""
        answer = self._ask(name, *arguments)
        if isinstance(answer, np.ndarray):
            return answer
        return self._board.logits[: math.prod(answer)].reshape(answer).copy()

    def _posted(self, seq: int, token: int) -> Floats:
        """What decode returns, asked for and answered on the board. This process sleeps for half of the time, in which
        the ranks are busiest: its core may be the other half of one of theirs."""
        self._alive()
        self._board.post(seq, token, self._told)
        started, looking, nap_s = time.monotonic(), list(self._ranks), self._token_s / 2
        while True:
            send(("look",), [rank for rank in looking if not self._board.looking(rank.number)])
            looking = [rank for rank in looking if self._board.looking(rank.number)]
            if nap_s:  # a sleep of no time takes 70 us
                time.sleep(nap_s)
            if self._board.answered(LOOKS):
                return self._board.logits[: self.metadata["vocab_size"]].copy()
            for key, _ in self._selector.select(0):
                self._received(key.data, "computed")
            waited = time.monotonic() - started
            nap_s = 0.0 if waited < self._spin_s else NAP_S
            if waited > ANSWER_S:
                self._give_up(self._ranks[:1], ANSWER_S)

    def _tell(self, message: Any) -> None:
        self._alive()
        self._told += 1
        send(message, self._ranks)

    def _alive(self) -> None:
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
        while ready := self._heard(until):
            for key, _ in ready:
                content = self._received(key.data, doing)
                if key.data.number in numbers:
                    return key.data.number, content
        self._give_up(waited_for, limit_s)
        raise AssertionError

    def _received(self, rank: Rank, doing: str) -> Any:
        """What a rank said, unless that it failed."""
        try:
            kind, content = rank.channel.recv()
        except (EOFError, OSError):
            self._fail(rank, None, doing)
        if kind != "answer":
            self._fail(rank, content, doing)
        return content

    def _heard(self, until: float) -> list[tuple[selectors.SelectorKey, int]]:
        """The channels that have something to say."""
        spins = time.monotonic() + self._spin_s
        while time.monotonic() < spins:
            if ready := self._selector.select(0):
                return ready
        return self._selector.select(max(until - time.monotonic(), 0))

    def _give_up(self, late: Sequence[Rank], limit_s: float) -> None:
        for rank in late:
            rank.process.send_signal(signal.SIGABRT)  # it writes where it is into its log
        time.sleep(LAST_WORDS_S)
        logs = "\n".join(f"rank {rank.number}:\n{tail(rank.log)}" for rank in late)
        numbers = ", ".join(str(rank.number) for rank in late)
        message = f"rank {numbers} of {len(self._ranks)} gave no answer in {limit_s:.0f} s"
        self.close_with(StepError(f"{message}; the logs end with:\n{logs}", "build again"))

    def _fail(self, rank: Rank, error: BuildError | None, doing: str) -> None:
        """End all ranks and raise what went wrong: a process that died, before what another one said of it."""
        if error is not None and not isinstance(error, StepError):
            self.close_with(error)
        until = time.monotonic() + LAST_WORDS_S
        while (dead := self._died(rank if error is None else None)) is None and time.monotonic() < until:
            time.sleep(0.02)
        if dead is not None:
            count, log = len(self._ranks), tail(dead.log)
            message = f"rank {dead.number} of {count} {cause(dead.process.returncode)} while it {doing}"
            self.close_with(StepError(message + (f"; its log ends with:\n{log}" if log else "")))
        self.close_with(
            error or StepError(f"rank {rank.number} of {len(self._ranks)} closed its pipe while it {doing}")
        )

    def _died(self, silent: Rank | None) -> Rank | None:
        """A process that has ended by itself: one that was killed before one that gave up."""
        ended = [rank for rank in self._ranks if rank.process.poll() is not None]
        killed = [rank for rank in ended if rank.process.returncode < 0]
        return next(iter(killed), silent if silent in ended else None)

    def close_with(self, error: BuildError) -> None:
        self.close()
        raise error


def processes(count: int, library: Path) -> RankedCalls:
    """Start ``count`` ranks, which find each other; ``library`` says for what device.

    Raises:
        UserError: this machine has no such device, or not what the ranks talk through.
        StepError: a rank ended, or they did not find each other in time.
    """
    folder = Path(tempfile.mkdtemp(prefix="llm-build-ranks-"))
    spin_s, patience_s = (0.0, 0.0) if kind_of(library) == "cpu" else (SPIN_S, PATIENCE_S)  # ranks need all cores
    ranks: list[Rank] = []
    try:
        with shared_memory() as memory:
            board = Board(memory.fileno())
            for number in range(count):
                ranks.append(started(number, count, memory.fileno(), patience_s, folder, library))
    except BaseException:
        end(ranks, folder)
        raise
    calls = RankedCalls(ranks, folder, board, spin_s)
    try:
        calls.meet()
    except BaseException:
        calls.close()
        raise
    return calls


def send(message: Any, ranks: Sequence[Rank]) -> None:
    content = pickle.dumps(message)
    for rank in ranks:
        try:
            rank.channel.send_bytes(content)
        except OSError:  # it is gone: waiting for its answer says how
            continue


def started(number: int, count: int, board: int, patience_s: float, folder: Path, library: Path) -> Rank:
    ours, theirs = Pipe()
    watched, lifeline = Pipe(duplex=False)
    log = folder / f"rank-{number}.log"
    words = [number, count, theirs.fileno(), watched.fileno(), board, patience_s, folder, library.absolute()]
    with theirs, watched, log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module(), *map(str, words)],
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(count),
            pass_fds=(theirs.fileno(), watched.fileno(), board),
        )  # fmt: skip
    return Rank(number, process, ours, lifeline, log)


def module() -> str:
    """What each process runs; by import, so that it is in the identity of steps that run a library."""
    from builder.runtime import rank

    return rank.__name__


def environment(count: int) -> dict[str, str]:
    """The threads of this process are shared out, and not bound to cores: every rank would take the first ones. gloo
    talks through the loopback device. A rank's graphs and other calls of NCCL come one after the other, and waiting for
    what might run beside a graph costs 4 us a call."""
    threads = int(os.environ.get("TVM_NUM_THREADS", len(os.sched_getaffinity(0))))
    return {
        **os.environ,
        "TVM_NUM_THREADS": str(max(threads // count, 1)),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "TVM_BIND_THREADS": "0",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_GRAPH_MIXING_SUPPORT": "0",
    }


def end(ranks: Sequence[Rank], folder: Path) -> None:
    """Kill every process and wait for its end."""
    for rank in ranks:
        if rank.process.poll() is None:
            rank.process.kill()
    for rank in ranks:
        rank.process.wait()
        rank.channel.close()
        rank.lifeline.close()
    shutil.rmtree(folder, ignore_errors=True)


def cause(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def tail(log: Path) -> str:
    try:
        return log.read_bytes()[-LOG_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""
