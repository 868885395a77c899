"""`build` with the CPU seconds of its steps taken: python -m tools.sweep.measured RESULT.json WORDS

What a step uses is what its worker used while it ran, the start of a new worker included, by /proc/<pid>/stat.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from pathlib import Path

from llm_build.core.task import StepTask, TaskDone, TaskReport
from llm_build.executors import local

TICKS = os.sysconf("SC_CLK_TCK")  # per second
STEPS: dict[str, float] = {}  # id -> CPU seconds


class Measured(local.LocalExecutor):
    def submit(self, job: StepTask) -> None:
        before = {worker.process.pid: used(worker.process.pid) for worker in self._workers}
        super().submit(job)
        worker = next(each for each in self._workers if each.job is job)
        STEPS[job.id] = -before.get(worker.process.pid, 0.0)

    def wait(self, timeout_s: float) -> list[TaskReport]:
        busy = {each.job.id: each.process.pid for each in self._workers if each.job}
        reports = super().wait(timeout_s)
        for report in reports:
            if isinstance(report, TaskDone):
                STEPS[report.id] += used(busy[report.id])
        return reports


def used(pid: int) -> float:
    """User and system time of a process and of its children that ended, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


def main() -> int:
    from llm_build.__main__ import main as build

    local.LocalExecutor = Measured  # type: ignore[misc]
    code = build(sys.argv[2:])
    whole = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(each.ru_utime + each.ru_stime for each in whole)
    Path(sys.argv[1]).write_text(json.dumps({"total": total, "steps": STEPS}))
    return code


if __name__ == "__main__":
    sys.exit(main())
