"""One line per event, for logs and pipes. While nothing happens, a line every two seconds says what is running."""

from __future__ import annotations

import threading
import time
from typing import TextIO

from builder.core.events import Event, Finished, Progress, Started, Waiting, Warned
from builder.report.words import base, seconds, size

QUIET_S = 1.8  # a screen that stands still for longer looks dead


class Lines:
    """A listener of the run. Steps that were fresh already say nothing."""

    def __init__(self, stream: TextIO, quiet: bool = False) -> None:
        self.stream, self.quiet, self.last = stream, quiet, time.monotonic()
        self.running: dict[str, float] = {}  # step name -> when it started
        self.over = threading.Event()
        self.ticker: threading.Thread | None = None

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.ticker:
            self.ticker.join()

    def tick(self) -> None:
        """Names what is running whenever nothing else was said for a while."""
        while not self.over.wait(0.2):
            now = time.monotonic()
            if self.running and now - self.last > QUIET_S:
                self.say(
                    "... " + ", ".join(f"{name} {now - since:.0f} s" for name, since in dict(self.running).items())
                )

    def say(self, text: str) -> None:
        self.last = time.monotonic()
        print(text, file=self.stream, flush=True)

    def began(self, name: str) -> None:
        self.running[name] = time.monotonic()
        if self.ticker is None:
            self.ticker = threading.Thread(target=self.tick, daemon=True)
            self.ticker.start()

    def __call__(self, event: Event) -> None:
        match event:
            case Warned():
                self.say(f"warning: {event.name + ': ' if event.name else ''}{event.message}")
            case _ if self.quiet:
                return
            case Started():
                self.began(event.name)
                self.say(f"{event.name}: started ({event.reason})")
            case Progress() if time.monotonic() - self.last > QUIET_S:
                self.say(f"{base(event.name)}: {amount(event)}")
            case Waiting():
                self.say(f"{event.name}: another build (process {event.pid}) is at it, waiting")
            case Finished(status="ran"):
                self.running.pop(event.name, None)
                self.say(f"{event.name}: done in {seconds(event.seconds)}, {size(event.nbytes)}")
            case Finished(status="failed"):
                self.running.pop(event.name, None)
                self.say(f"{event.name}: FAILED after {seconds(event.seconds)}")
            case Finished(status="skipped"):
                self.say(f"{event.name}: skipped ({event.reason})")


def amount(event: Progress) -> str:
    """How far a step is: bytes, or things of a kind."""
    if event.unit == "B":
        return f"{size(event.done)} of {size(event.total)} {event.label}".rstrip()
    return f"{event.done:g} of {event.total:g} {event.unit} {event.label}".rstrip()
