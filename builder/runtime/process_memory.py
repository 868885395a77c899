"""How much memory this process takes, as Linux counts it."""

from __future__ import annotations

from pathlib import Path


def process_memory() -> dict[str, int | None]:
    """Of this process: the largest resident size that it had, and what it has now with shared pages counted in part
    (/proc/<pid>/smaps_rollup: Pss)."""
    return {
        "peak_rss_bytes": _kilobytes("/proc/self/status", "VmHWM:"),
        "pss_bytes": _kilobytes("/proc/self/smaps_rollup", "Pss:"),
    }


def _kilobytes(file: str, key: str) -> int | None:
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key)), None)
