"""Milliseconds that it takes to find out that a plan of N steps is up to date (`build plan` on a synthetic plan).

    python benchmarks/plan_steps.py [N ...]        prints one line of JSON per N

The plan: goals of 25 steps. Each goal has a list of 20 items, a step per item, one that gathers them, a chain of three.
Keys, records and blobs are real ones in a store on disk; a second process then examines them, so nothing is warm but
the page cache. `import_ms` is what importing builder.core.examine takes in a fresh interpreter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from builder.core.examine import examine
from builder.core.filestore import FileStore, open_store
from builder.core.job import Job, JobDone, Report, Result
from builder.core.plan import Goal, Plan
from builder.core.run import run
from builder.core.step import Input, Resources, Step

ITEMS = 20
PER_GOAL = ITEMS + 5
CODE = "builder.core.run:run"  # any module with a fair number of imports: only its fingerprint is taken


def synthetic(steps: int) -> Plan:
    found: dict[str, Step] = {}
    goals = []
    for index in range(max(1, steps // PER_GOAL)):
        made = goal_steps(index)
        found.update({step.id: step for step in made})
        goals.append(Goal(f"goal-{index}", tuple(step.id for step in made), made[-1].id))
    return Plan(found, tuple(goals))


def goal_steps(index: int) -> list[Step]:
    recipe = {"model": {"hidden_size": 2048, "layers": 22, "heads": 32, "theta": 1e4}, "quant": {"bits": 4}, "n": index}
    fan, gather = f"quantize-{index}", f"gather-{index}"
    items = Step(f"shard-{index}", "shard", CODE, {**recipe, "items": ITEMS})
    template = Step(fan, "quantize", CODE, recipe, {"list": Input(items.id, "shards.json")}, expand="list")
    made = [items, template, Step(gather, "gather", CODE, recipe, {"all": Input(fan, "*")}, tools=("blake3",))]
    for name in ("lower", "package", "verify"):
        made.append(Step(f"{name}-{index}", name, CODE, recipe, {"from": Input(made[-1].id, "out.bin")}))
    return made


class Instant:
    """Makes the outputs without a process."""

    capacity = Resources(cpu=64)

    def __init__(self, store: FileStore) -> None:
        self.store = store
        self.jobs: list[Job] = []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def wait(self, timeout_s: float) -> list[Report]:
        jobs, self.jobs = self.jobs, []
        return [JobDone(job.id, self.result(job)) for job in jobs]

    def result(self, job: Job) -> Result:
        name, data = "out.bin", job.id
        if job.name == "shard":
            each = [{"name": str(i), "params": {"i": i, "dtype": "float16"}, "inputs": {}} for i in range(ITEMS)]
            name, data = "shards.json", json.dumps({"items": each})
        path = job.scratch / "out"
        path.write_text(data)
        return Result(self.store.adopt({name: path}, 1))

    def stop(self) -> None: ...


def main() -> None:
    for steps in [int(argument) for argument in sys.argv[1:]] or [100, 1000, 10_000]:
        with tempfile.TemporaryDirectory() as folder:
            sync, os.fsync = os.fsync, lambda handle: None
            store = open_store(Path(folder) / "store")
            run(synthetic(steps), store, Instant(store), lambda event: None)
            os.fsync = sync
            times = [json.loads(measured(steps, folder)) for _ in range(5)]
        best = min(times, key=lambda each: each["examine_ms"])
        print(json.dumps({**best, "ms_per_step": round(best["examine_ms"] / best["steps"], 4)}), flush=True)


def measured(steps: int, folder: str) -> str:
    return subprocess.run(
        [sys.executable, __file__, "--examine", str(steps), folder], check=True, capture_output=True, text=True
    ).stdout


def examine_once(steps: int, folder: str) -> None:
    plan = synthetic(steps)
    clock, cpu = time.perf_counter(), time.process_time()
    verdicts = examine(plan, open_store(Path(folder) / "store"))
    examine_ms, cpu_ms = (time.perf_counter() - clock) * 1000, (time.process_time() - cpu) * 1000
    assert all(verdict.status == "hit" for verdict in verdicts.values())
    clock = time.perf_counter()
    store = open_store(Path(folder) / "store")
    outcome = run(plan, store, Instant(store), lambda event: None)
    run_ms = (time.perf_counter() - clock) * 1000
    assert not any(done.status != "hit" for done in outcome.steps.values())
    found = {"examine_ms": examine_ms, "examine_cpu_ms": cpu_ms, "run_ms": run_ms}
    print(json.dumps({"steps": len(verdicts), **{name: round(ms, 1) for name, ms in found.items()}}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--examine"]:
        examine_once(int(sys.argv[2]), sys.argv[3])
    else:
        main()
