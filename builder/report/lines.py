"""One line per event, for logs and pipes. While nothing happens, a line says what is running: after two seconds, then
after twice as long each time, at most a minute."""

from __future__ import annotations

import threading
import time
from collections import Counter
from typing import TextIO

from llm_build.core.events import Event, Expanded, Finished, Planned, Progress, Started, Waiting, Warned
from llm_build.core.units import count_of, format_bytes
from llm_build.report.matrix import Matrix
from llm_build.report.run_state import RunState
from llm_build.report.text import TransferRates, format_clock, format_seconds

_QUIET_S, _LONGEST_QUIET_S = 2.0, 60.0  # first and longest silence while a step runs: logs of CI are kept and read
TRANSFER_S = 5.0  # between lines about files on their way
_NAMED = 4  # steps that one line names


class Lines:
    """A listener of the run. Steps that were fresh already say nothing; ``matrix``: of a sweep."""

    def __init__(self, stream: TextIO, quiet: bool = False, matrix: Matrix | None = None) -> None:
        self.stream, self.quiet, self.last = stream, quiet, time.monotonic()
        self.state, self.rates = RunState(matrix), TransferRates()
        self.running: dict[str, tuple[str, float]] = {}  # step id -> its label, when it started
        self.amounts: dict[str, str] = {}  # step id -> how far it is
        self.silence = _QUIET_S  # before the next line about what is running
        self.skipped: Counter[str] = Counter()
        self.transfers: dict[str, tuple[Progress, float]] = {}  # name -> last event, when it was printed
        self.over = threading.Event()
        self.ticker: threading.Thread | None = None

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.ticker:
            self.ticker.join()
        for last, _when in self.transfers.values():
            self.print_line(f"{last.name}: {amount(last)}")
        for text in self.state.repeated():
            self.print_line(f"warning: {text}")
        for reason, count in self.skipped.items():
            self.print_line(f"{count_of(count, 'step')} skipped ({reason})")

    def tick(self) -> None:
        """Names what is running whenever nothing else was printed for a while."""
        while not self.over.wait(0.2):
            try:
                self.say_what_runs()
            except OSError:  # nobody reads it any more: the next event ends the build
                return

    def say_what_runs(self) -> None:
        now, running = time.monotonic(), list(self.running.items())
        if not running or now - self.last < self.silence:
            return
        said = []
        for id_, (label, since) in running[:_NAMED]:
            far = self.amounts.get(id_)
            said.append(f"{label} {format_clock(now - since)}" + (f" ({far})" if far else ""))
        more = f" and {len(running) - _NAMED} more" if len(running) > _NAMED else ""
        self.print_line(f"... {', '.join(said)}{more}")
        self.silence = min(2 * self.silence, _LONGEST_QUIET_S)

    def print_line(self, text: str) -> None:
        self.last = time.monotonic()
        print(text, file=self.stream, flush=True)

    def began(self, id_: str, label: str) -> None:
        self.running[id_], self.silence = (label, time.monotonic()), _QUIET_S
        if self.ticker is None:
            self.ticker = threading.Thread(target=self.tick, daemon=True)
            self.ticker.start()

    def ended(self, id_: str) -> float:
        """Seconds that a step took, up to now."""
        now, self.silence = time.monotonic(), _QUIET_S
        self.amounts.pop(id_, None)
        return now - self.running.pop(id_, ("", now))[1]

    def __call__(self, event: Event) -> None:
        self.state(event)
        label = "" if isinstance(event, Planned | Expanded) else self.state.label(event.id, event.name)
        match event:
            case Warned() if not self.state.is_new(event):
                return
            case Warned():
                self.print_line(f"warning: {label + ': ' if label else ''}{event.message}")
            case _ if self.quiet:
                return
            case Started():
                self.began(event.id, label)
                self.print_line(f"{label}: started ({event.reason})")
            case Progress(id=""):
                self.transfer(event)
            case Progress():
                self.amounts[event.id] = amount(event)
            case Waiting():
                self.print_line(f"{label}: another build (process {event.pid}) is at it, waiting")
            case Finished(status="ran"):
                self.ended(event.id)
                self.print_line(f"{label}: done in {format_seconds(event.seconds)}, {format_bytes(event.nbytes)}")
            case Finished(status="failed"):
                self.print_line(f"{label}: FAILED after {format_seconds(self.ended(event.id))}")
            case Finished(status="skipped"):
                self.skipped[event.reason] += 1

    def transfer(self, event: Progress) -> None:
        """Now and then while files are on their way, and what it was when the build ends."""
        self.rates.note(event.name, event.done)
        before, now = self.transfers.get(event.name), time.monotonic()
        printed_at = before[1] if before else now
        if now - printed_at > TRANSFER_S:
            self.print_line(f"{event.name}: {amount(event)}{self.rates.rate(event.name)}")
            printed_at = now
        self.transfers[event.name] = event, printed_at


def amount(event: Progress) -> str:
    """How far a step is: bytes, or things of a kind."""
    if not event.total and not event.done:
        return event.label
    if event.unit == "B":
        of = f" of {format_bytes(event.total)}" if event.total else ""
        return f"{format_bytes(event.done)}{of}" + (f", {event.label}" if event.label else "")
    return f"{event.done:g} of {event.total:g} {event.unit} {event.label}".rstrip()
