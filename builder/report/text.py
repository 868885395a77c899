"""Times, rates and names as people read them."""

from __future__ import annotations

import time
from collections import deque
from typing import TextIO

from llm_build.core.units import format_bytes

_WINDOW_S = 5.0  # over which a rate is taken


def format_seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 0.9995 else f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def format_clock(elapsed_s: float) -> str:
    """0:04, 12:30, 1:02:03"""
    minutes, rest = divmod(int(elapsed_s), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


def wrap_text(text: str, stream: TextIO) -> str:
    """Text as it is, on a terminal broken between words where a line ends. Not for commands, which are copied."""
    if not stream.isatty():
        return text
    import shutil
    import textwrap

    width = shutil.get_terminal_size((80, 24)).columns
    wrapper = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(line if len(line) <= width else wrapper.fill(line) for line in text.split("\n"))


def format_rate(per_s: float) -> str:
    """A number of things per second, three digits or more."""
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}"


def template_name(step_name: str) -> str:
    """quantize[12] -> quantize"""
    return step_name.partition("[")[0]


class TransferRates:
    """How fast bytes go, by the name of what they are."""

    def __init__(self) -> None:
        self.seen: dict[str, deque[tuple[float, int]]] = {}

    def note(self, name: str, done: int) -> None:
        now, seen = time.monotonic(), self.seen.setdefault(name, deque())
        if seen and done < seen[-1][1]:
            seen.clear()  # another lot of files
        seen.append((now, done))
        while len(seen) > 2 and now - seen[0][0] > _WINDOW_S:
            seen.popleft()

    def rate(self, name: str) -> str:
        """ ", 12.3 MB/s", "" where it is not known yet."""
        seen = self.seen[name]
        elapsed = seen[-1][0] - seen[0][0]
        return f", {format_bytes((seen[-1][1] - seen[0][1]) / elapsed)}/s" if elapsed > 0 else ""
