"""Sizes, times and names as people read them."""

from __future__ import annotations


def size(nbytes: float) -> str:
    """Bytes with a decimal unit, as disks and networks count them."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(nbytes) < 1000:
            return f"{nbytes:.0f} {unit}" if unit == "B" else f"{nbytes:.1f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} TB"


def seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def base(step_name: str) -> str:
    """quantize[12] -> quantize"""
    return step_name.partition("[")[0]
