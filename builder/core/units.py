"""Quantities as people read them, in messages of every room."""

from __future__ import annotations


def format_bytes(nbytes: float) -> str:
    """Bytes with a decimal unit, as disks and networks count them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"
