"""A sweep of many cells whose results are in the store although nothing was compiled: what finding them costs is real.

The plan, its keys and records, the export and the command that is measured are those of a build; only the bytes of the
results are made up here, small and different for every step.

    python -m benchmarks.synthetic model=m0,m1 ...    in a folder that write_conf has written
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_build.app.build import export_good
from llm_build.app.merge import merge
from llm_build.app.sweep import sweep
from llm_build.cli.arguments import parse
from llm_build.config.choices import Composed, choices_of, find_folders
from llm_build.core.digest import digest_of_bytes
from llm_build.core.filestore import FileStore
from llm_build.core.plan import Plan
from llm_build.core.run import run
from llm_build.core.step import Resources, Step
from llm_build.core.task import StepResult, StepTask, TaskDone, TaskReport
from llm_build.executors.output import StoreOut

DEMO = Path(__file__).resolve().parent.parent / "builder" / "demo"
FACTS = {"perplexity": 42.0, "perplexity_original": 41.0, "kl": 0.01}
CHECKS = {"verify": FACTS, "verify.weights": {**FACTS, "not_run": "another machine"}}
SHARDS = 3
LEVELS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "host", "arm64")


def write_conf(folder: Path, models: int, quants: int, targets: int) -> list[str]:
    """Choices m<i> and t<i> in ``folder``/conf: checkpoints of their own, which are copies of the demo, with a context
    of their own, and CPUs. The words of a sweep over them and as many shipped schemes."""
    for group in ("model", "target"):
        (folder / "conf" / group).mkdir(parents=True)
    for index in range(models):
        shutil.copytree(DEMO, folder / f"checkpoint{index}")
        said = f"source: {folder}/checkpoint{index}\ncontext_window_size: {256 + index}\n"
        (folder / "conf" / "model" / f"m{index}.yaml").write_text(said)
    for index in range(targets):
        said = f"defaults: [cpu]\ncpu: {LEVELS[index % len(LEVELS)]}\nmemory_bytes: {(1 << 33) + index}\n"
        (folder / "conf" / "target" / f"t{index}.yaml").write_text(said)
    schemes = [name for name in choices_of("quant", find_folders()) if name != "imported"][:quants]
    columns = {"model": numbered("m", models), "quant": schemes, "target": numbered("t", targets)}
    return [f"{group}={','.join(names)}" for group, names in columns.items()]


def numbered(letter: str, count: int) -> list[str]:
    return [f"{letter}{index}" for index in range(count)]


def fill(composed: Sequence[Composed]) -> list[StepTask]:
    """Put every result of a sweep in the store, and its folders in dist. The jobs that ran."""
    request = merge(composed, find_folders())
    executor = MadeUp(request.plan, request.store)
    outcome = run(request.plan, request.store, executor, lambda event: None)
    assert not outcome.failed, next(done for done in outcome.steps.values() if done.error)
    export_good(outcome, request, lambda event: None)
    return executor.ran


class MadeUp:
    """An executor that writes, for each step, the outputs that others read of it."""

    def __init__(self, plan: Plan, store: FileStore) -> None:
        self.capacity = self.largest = Resources(cpu=1 << 20, memory_bytes=1 << 60, gpu=1)
        self.ran: list[StepTask] = []
        self._store, self._plan, self._jobs = store, plan, list[StepTask]()

    def submit(self, job: StepTask) -> None:
        self._jobs.append(job)

    def wait(self, timeout_s: float) -> list[TaskReport]:
        jobs, self._jobs = self._jobs, []
        self.ran += jobs
        return [TaskDone(job.id, self._run(job)) for job in jobs]

    def _run(self, job: StepTask) -> StepResult:
        out = StoreOut(job, self._store, lambda report: None)
        template = job.id.partition("[")[0]
        for name in self._wanted(template):
            out.path(name).write_bytes(content_of(job, name))
        step = self._plan.steps[template]
        for name, (_, nbytes) in weights_of(step).items():
            out.slice(f"tensor/{name}", digest_of_bytes(name.encode()), nbytes, f"watch:{name}", 0)
        for name, value in CHECKS.get(job.name, {}).items():
            out.fact(name, value)
        return StepResult(out.finish(), out.facts)

    def _wanted(self, id_: str) -> set[str]:
        names = {i.output for step in self._plan.steps.values() for i in step.inputs.values() if i.step == id_}
        return {name.replace("*", "made") for name in names if not name.startswith("tensor/")} or {"done.json"}

    def stop(self) -> None:
        self._jobs.clear()


def weights_of(step: Step) -> Mapping[str, tuple[str, int]]:
    found = {name: (path, Path(path).stat().st_size) for name, path in step.watch.items()}
    return {name: value for name, value in found.items() if name.endswith(".safetensors")}


def content_of(job: StepTask, name: str) -> bytes:
    if name == "shards.json":
        items = [
            {"name": str(index), "params": {"index": index, "of": job.id}, "inputs": {}} for index in range(SHARDS)
        ]
        return json.dumps({"made": job.id, "items": items}).encode()
    return json.dumps({"made": job.id, "name": name}).encode()


def main(words: Sequence[str]) -> None:
    sweep(parse(["-m", *words]).build, lambda composed: len(fill(composed)))


if __name__ == "__main__":
    main(sys.argv[1:])
