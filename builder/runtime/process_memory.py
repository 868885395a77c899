"""How much memory this process takes."""

from __future__ import annotations

from llm_build.core import system


def process_memory() -> dict[str, int | None]:
    """Of this process: the largest resident size that it had, and what it has now with shared pages counted in part;
    None where the system does not say."""
    return {"peak_rss_bytes": system.peak_bytes(), "pss_bytes": system.proportional_bytes()}
