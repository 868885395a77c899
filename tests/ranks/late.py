"""A rank process (tests/ranks) whose last rank hears late, as one does whose core was busy with something else."""

from __future__ import annotations

import sys
import time
from typing import Any

from llm_build.runtime import rank
from llm_build.runtime.rank import CommandReceiver

LATE_S = 0.005


class LateReceiver(CommandReceiver):
    def message(self) -> Any:
        time.sleep(LATE_S)
        return super().message()


if __name__ == "__main__":
    number, count = int(sys.argv[1]), int(sys.argv[2])
    if number == count - 1:
        rank.CommandReceiver = LateReceiver  # type: ignore[misc]
    rank.main()
