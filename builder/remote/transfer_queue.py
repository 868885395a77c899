"""Transfers in one direction: a few daemon threads, each blob moved once however many results want it."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from llm_build.core.events import Progress
from llm_build.core.record import Output
from llm_build.core.units import count_of
from llm_build.remote.bucket import OnBytes

_SLOWEST_BYTES_S = 100_000.0  # an upload in one piece says nothing before its end: slower than this it counts as stuck
_REPORT_S = 0.1

OnEnd = Callable[["Exception | None"], None]
Work = Callable[[str, Output, OnBytes], None]


class _Clock:
    """When a call last moved a byte, and for how many seconds more than others it may be silent."""

    def __init__(self) -> None:
        self.moved = time.monotonic()
        self.extra_s = 0.0


class TransferQueue:
    """``work(name, output, moved)`` transfers one blob, or raises. ``patient``: it may do so in one piece. Threads
    start when there is something to do and die with the process: a dead server can never keep it alive."""

    def __init__(self, name: str, threads: int, work: Work, patient: bool = False) -> None:
        self.name = name
        self._most = threads
        self._patient = patient
        self._work = work
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._clocks: dict[int, _Clock] = {}  # thread -> the call it is in
        self._waiting: dict[str, list[OnEnd]] = {}  # digest -> who waits for it
        self._files = self._files_done = self._total = self._done = 0
        self._reported = (0, 0)
        self._report_at = 0.0

    def call(self, function: Callable[[], None]) -> None:
        """Run ``function``, which must not raise, in one of the threads."""
        self._calls.put(function)
        with self._lock:
            if self._idle < self._calls.qsize() and self._threads < self._most:
                self._threads += 1
                threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        me = threading.get_ident()
        while True:
            with self._lock:
                self._idle += 1
            function = self._calls.get()
            with self._lock:
                self._idle -= 1
                self._clocks[me] = _Clock()
            function()
            with self._lock:
                del self._clocks[me]

    def submit(self, name: str, output: Output, on_end: OnEnd) -> None:
        """Transfer a blob; ``on_end`` gets what went wrong, or None, in one of the threads."""
        with self._lock:
            waiting = self._waiting.setdefault(output.digest, [])
            waiting.append(on_end)
            if len(waiting) > 1:
                return
            self._files += 1
            self._total += output.nbytes
        self.call(lambda: self._transfer(name, output))

    def _transfer(self, name: str, output: Output) -> None:
        moved = 0
        clock = self._clocks[threading.get_ident()]
        clock.extra_s = output.nbytes / _SLOWEST_BYTES_S if self._patient else 0.0

        def on_bytes(nbytes: int) -> None:  # called by a thread of the backend
            nonlocal moved
            with self._lock:
                moved += nbytes
                clock.moved = time.monotonic()
                self._done += nbytes

        error = None
        try:
            self._work(name, output, on_bytes)
        except Exception as raised:
            error = raised
        with self._lock:
            self._total += moved - output.nbytes  # it was there already, or moved twice
            self._files -= 0 if moved or error else 1
            self._files_done += 1 if moved or error else 0
            waiting = self._waiting.pop(output.digest)
        for on_end in waiting:
            on_end(error)

    def silence_s(self) -> float:
        """How much longer than allowed the most silent call has said nothing."""
        now = time.monotonic()
        with self._lock:
            return max((now - clock.moved - clock.extra_s for clock in self._clocks.values()), default=0.0)

    @property
    def moved(self) -> int:
        """Bytes transferred so far."""
        return self._done

    def progress(self) -> Progress | None:
        """How far all transfers of this queue are, when that has changed."""
        with self._lock:
            state, now = (self._done, self._total), time.monotonic()
            over = self._files_done == self._files
            if state == self._reported or (now < self._report_at and not over):
                return None
            self._reported, self._report_at = state, now + _REPORT_S
            label = f"{self._files_done} of {count_of(self._files, 'file')}"
            return Progress("", self.name, self._done, self._total, "B", label)
