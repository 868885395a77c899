"""Any two kinds of steps in one worker, in either order: what one loads must not spoil the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise, permutations
from pathlib import Path

import pytest

from llm_build.app.merge import merge
from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.core.filestore import FileStore
from llm_build.core.plan import Plan
from llm_build.core.run import run
from llm_build.core.step import Resources
from llm_build.core.task import StepTask, TaskDone
from llm_build.executors.local import LocalExecutor
from llm_build.planner.graph.bench import bench_plan

LITTLE = ("verify.tokens=32", "verify.window=16", "quant.calibration.window=16", "target.cpu=host")
JOBS = (
    (*LITTLE, "quant.method=gptq", "quant.calibration.tokens=64", "name=a"),
    (*LITTLE, "quant.budget=4.25", "quant.sensitivity_tokens=32", "name=b"),
)
# One of each kind of process: numpy alone, torch, TVM's compiler, TVM's runtime, and one that starts its own process.
KINDS = ("quantize", "calibrate", "sensitivity", "verify.reference", "verify.dequantized", "lower", "verify", "bench")
HEAVY = ("quantize", "verify.reference", "lower", "verify")


class _Recorder(LocalExecutor):
    """Keeps the tasks that it was given."""

    tasks: dict[str, StepTask]

    def submit(self, task: StepTask) -> None:
        self.tasks[task.name.partition("[")[0]] = task
        super().submit(task)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FileStore, dict[str, StepTask]]]:
    """A store in which the demo was built with a calibration, a budget and a measurement; the last task of each
    kind."""
    before = os.environ.get("LLM_BUILD_STORE")
    os.environ["LLM_BUILD_STORE"] = str(tmp_path_factory.mktemp("orders"))
    try:
        request = merge([compose.compose(words, None) for words in JOBS], find_folders())
    finally:
        os.environ.pop("LLM_BUILD_STORE")
        if before is not None:
            os.environ["LLM_BUILD_STORE"] = before
    measured = bench_plan([(request.recipes[0], {"cpu": "any"})], request.plan)
    plan = Plan({**request.plan.steps, **measured.steps}, ())
    with _Recorder(request.store, Resources(2, 8 << 30)) as executor:
        executor.tasks = {}
        outcome = run(plan, request.store, executor, lambda event: None)
        assert not outcome.failed, [done.error for done in outcome.steps.values() if done.error]
        assert set(KINDS) <= executor.tasks.keys()
    request.store.start()
    yield request.store, executor.tasks
    request.store.stop()


def again(executor: LocalExecutor, store: FileStore, task: StepTask) -> TaskDone:
    """Run a step once more, as it was, in a process of the executor."""
    scratch = store.scratch()
    executor.submit(task._replace(resources=Resources(1), scratch=scratch))
    while True:
        for report in executor.wait(1.0):
            if isinstance(report, TaskDone):
                store.discard(scratch)
                return report


def round_through(kinds: tuple[str, ...]) -> list[str]:
    """A round in which every ordered pair of two kinds stands side by side once (Hierholzer's way through the complete
    directed graph)."""
    left = {kind: [other for other in kinds if other != kind] for kind in kinds}
    path, way = [kinds[0]], []
    while path:
        if left[path[-1]]:
            path.append(left[path[-1]].pop())
        else:
            way.append(path.pop())
    return way[::-1]


def test_the_round_has_every_pair_once():
    way = round_through(KINDS)
    assert sorted(pairwise(way)) == sorted(permutations(KINDS, 2))


def test_every_kind_after_every_other_in_a_long_row(built: tuple[FileStore, dict[str, StepTask]]):
    store, tasks = built
    with LocalExecutor(store, Resources(1, 8 << 30)) as executor:
        for kind in round_through(KINDS):
            done = again(executor, store, tasks[kind])
            assert done.error is None, (kind, done.error)
        assert len(executor._workers) == 1


@pytest.mark.parametrize(("first", "second"), list(permutations(HEAVY, 2)))
def test_two_kinds_in_a_new_worker(
    built: tuple[FileStore, dict[str, StepTask]], first: str, second: str, tmp_path: Path
):
    store, tasks = built
    with LocalExecutor(store, Resources(1, 8 << 30)) as executor:
        assert again(executor, store, tasks[first]).error is None
        (process,) = executor._workers
        done = again(executor, store, tasks[second])
        assert done.error is None, (first, second, done.error)
        assert (executor._workers == [process]) == ((first, second) != ("verify", "lower"))
