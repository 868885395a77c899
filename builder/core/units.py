"""Quantities as people read them, in messages of every room."""

from __future__ import annotations


def count_of(count: int, noun: str) -> str:
    """ "1 step", "2 steps", "0 steps"; "1 of 9 steps" has a count of its own: f"1 of {count_of(9, 'step')}"."""
    return f"{count} {noun if count == 1 else noun + _ending(noun)}"


def _ending(noun: str) -> str:
    return "es" if noun.endswith(("s", "x", "ch", "sh")) else "s"


def format_bytes(nbytes: float) -> str:
    """Bytes with a decimal unit, as disks and networks count them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"
