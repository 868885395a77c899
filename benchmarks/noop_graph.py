"""One plan of N steps for this project's core and, as the same graph of files, for ninja, doit and Snakemake.

    python -m benchmarks.noop_graph N STORE             builds it where there is nothing to do
    python -m benchmarks.noop_graph N STORE examine     only finds that out; prints one line of JSON

The plan: goals of 25 steps. Each goal has a list of 20 items, a step per item, one that gathers them, a chain of three.
Keys, records and blobs are real ones in a store on disk; only the steps are made without a process.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from llm_build.core.examine import examine
from llm_build.core.filestore import FileStore, open_store
from llm_build.core.plan import Goal, Plan, producers_of
from llm_build.core.run import run
from llm_build.core.step import Input, Resources, Step
from llm_build.core.task import StepResult, StepTask, TaskDone, TaskReport

ITEMS = 20
PER_GOAL = ITEMS + 5
CODE = "llm_build.core.run:run"  # any module with a fair number of imports: only its fingerprint is taken
Graph = Mapping[str, list[str]]  # step -> the steps that it reads, in an order that they can be made in


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
    items = Step("shard", CODE, {**recipe, "items": ITEMS}, id=f"shard-{index}")
    template = Step(
        "quantize", CODE, recipe, {"list": Input(items.id, "shards.json")}, expand="list", id=f"quantize-{index}"
    )
    made = [
        items,
        template,
        Step("gather", CODE, recipe, {"all": Input(template.id, "*")}, tools=("blake3",), id=f"gather-{index}"),
    ]
    for name in ("lower", "package", "verify"):
        made.append(Step(name, CODE, recipe, {"from": Input(made[-1].id, "out.bin")}, id=f"{name}-{index}"))
    return made


class Instant:
    """Makes the outputs without a process."""

    capacity = largest = Resources(cpu=64)

    def __init__(self, store: FileStore) -> None:
        self.store = store
        self.jobs: list[StepTask] = []

    def submit(self, job: StepTask) -> None:
        self.jobs.append(job)

    def wait(self, timeout_s: float) -> list[TaskReport]:
        jobs, self.jobs = self.jobs, []
        return [TaskDone(job.id, self.result(job)) for job in jobs]

    def result(self, job: StepTask) -> StepResult:
        name, data = "out.bin", job.id
        if job.name == "shard":
            each = [{"name": str(i), "params": {"i": i, "dtype": "float16"}, "inputs": {}} for i in range(ITEMS)]
            name, data = "shards.json", json.dumps({"items": each})
        path = job.scratch / "out"
        path.write_text(data)
        return StepResult(self.store.ingest({name: path}, 1))

    def stop(self) -> None: ...


def fill(steps: int, root: Path) -> None:
    """Build the plan of ``steps`` steps in a new store."""
    sync, os.fsync = os.fsync, lambda handle: None
    try:
        store = open_store(root)
        outcome = run(synthetic(steps), store, Instant(store), lambda event: None)
    finally:
        os.fsync = sync
    assert not outcome.failed


def graph(steps: int) -> Graph:
    """Which step reads which in that plan, items of a fan-out spelled out."""
    names: dict[str, list[str]] = {}
    found: dict[str, list[str]] = {}
    for step in synthetic(steps).steps.values():
        names[step.id] = [f"{step.id}.{item}" for item in range(ITEMS)] if step.expand else [step.id]
        reads = [name for producer in producers_of(step) for name in names[producer]]
        found.update(dict.fromkeys(names[step.id], reads))
    return found


def ninja(found: Graph, folder: Path) -> None:
    rules = [f"build {name}: touch {' '.join(reads)}" for name, reads in found.items()]
    (folder / "build.ninja").write_text("\n".join(["rule touch", "  command = touch $out", *rules, ""]))


DODO = """
import json
from pathlib import Path

def task_touch():
    for name, reads in json.load(open("graph.json")).items():
        yield {"name": name, "targets": [name], "file_dep": reads, "actions": [Path(name).touch]}
"""


def doit(found: Graph, folder: Path) -> None:
    (folder / "graph.json").write_text(json.dumps(found))
    (folder / "dodo.py").write_text(DODO)


SNAKEFILE = """
import json
READS = json.load(open("graph.json"))

rule all:
    input: list(READS)

rule touch:
    input: lambda wildcards: READS[wildcards.name]
    output: "{name}"
    wildcard_constraints: name=r"[a-z]+-[0-9.]+"
    shell: "touch {output}"
"""


def snakemake(found: Graph, folder: Path) -> None:
    """Its files are made here, each younger than what it reads: to make them itself would take it minutes."""
    (folder / "graph.json").write_text(json.dumps(found))
    (folder / "Snakefile").write_text(SNAKEFILE)
    for age, name in enumerate(found):
        (folder / name).touch()
        os.utime(folder / name, ns=(10**18 + age * 10**6, 10**18 + age * 10**6))


def examine_once(steps: int, root: Path) -> dict[str, float]:
    """What it takes to find out that the plan is up to date, in this process."""
    plan = synthetic(steps)
    clock, cpu = time.perf_counter(), time.process_time()
    verdicts = examine(plan, open_store(root))
    found = {"ms": (time.perf_counter() - clock) * 1000, "cpu_ms": (time.process_time() - cpu) * 1000}
    assert all(verdict.status == "fresh" for verdict in verdicts.values())
    return {"steps": len(verdicts), **found}


def main(steps: str, root: str, *how: str) -> None:
    if how == ("examine",):
        print(json.dumps(examine_once(int(steps), Path(root))))
        return
    store = open_store(Path(root))
    outcome = run(synthetic(int(steps)), store, Instant(store), lambda event: None)
    assert not any(done.status != "fresh" for done in outcome.steps.values())


if __name__ == "__main__":
    main(*sys.argv[1:])
