"""A plugin of coverage that saves what workers ran: they end by SIGKILL, so nothing is saved when they end.

pyproject.toml names it ([tool.coverage.run]), and coverage loads it in every process that it measures.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from coverage import Coverage

PERIOD_S = 0.2  # what a worker ran since the last time is lost with it


def save_now_and_then() -> None:
    while True:
        time.sleep(PERIOD_S)
        if running := Coverage.current():
            running.save()


def coverage_init(registry: Any, options: Mapping[str, Any]) -> None:
    """Coverage's hook. A worker is a `python -c` that imports llm_build.executors.worker."""
    if any("llm_build.executors" in word for word in sys.orig_argv):
        threading.Thread(target=save_now_and_then, daemon=True).start()
