"""Which worker process a step gets, by what it loads and what the process has loaded before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations, product
from pathlib import Path
from typing import get_args

import pytest

from llm_build.core.filestore import open_store
from llm_build.core.step import Loads, Resources
from llm_build.core.task import StepTask
from llm_build.executors.local import LocalExecutor
from llm_build.executors.messages import task_from_json, task_to_json
from llm_build.executors.process_libraries import can_load, has_loaded, with_library

LIBRARIES: tuple[Loads, ...] = get_args(Loads)


class _FakeWorker:
    """A process that is never started: what it was given."""

    def __init__(self, number: int, threads: int) -> None:
        self.number = number
        self.threads = threads
        self.gpus: frozenset[str] = frozenset()
        self.task: StepTask | None = None
        self.loaded: set[str] = set()
        self.libraries: frozenset[Loads] = frozenset()
        self.order: list[Loads] = []


class _FakeProcesses(LocalExecutor):
    """The executor's choice among processes, without processes. Each task is over as soon as it was submitted."""

    def __init__(self, root: Path, processors: int) -> None:
        super().__init__(open_store(root), Resources(processors))
        self.started: list[_FakeWorker] = []

    def _spawn(self, task: StepTask):
        worker = _FakeWorker(len(self.started), task.resources.cpu)
        self.started.append(worker)
        self._workers.append(worker)  # type: ignore[arg-type]
        return worker

    def _end(self, worker) -> int:
        self._workers.remove(worker)
        return 0

    def give(self, loads: Loads, function: str = "") -> int:
        """The number of the process that gets a step."""
        task = StepTask("s", "s", function or f"steps.{loads}:run", {}, {}, {}, Resources(1), Path("/nowhere"), loads)
        worker = self._pick(task)
        worker.loaded.add(task.function)
        worker.libraries = with_library(worker.libraries, task.loads)
        worker.order.append(loads)  # type: ignore[attr-defined]
        assert len(self._workers) <= self._capacity.cpu
        return worker.number  # type: ignore[attr-defined]


def compiler_comes_first(order: Sequence[Loads]) -> bool:
    """What TVM needs: the runtime alone is never in a process before the compiler."""
    if "tvm-compiler" not in order:
        return True
    return "tvm-runtime" not in order[: order.index("tvm-compiler")]


@pytest.mark.parametrize("processors", [1, 2, 3])
def test_in_every_order_of_steps_no_process_loads_the_runtime_before_the_compiler(tmp_path: Path, processors: int):
    for order in product(LIBRARIES, repeat=5):
        pool = _FakeProcesses(tmp_path, processors)
        for loads in order:
            pool.give(loads)
        assert all(compiler_comes_first(worker.order) for worker in pool.started), order


@pytest.mark.parametrize(("first", "second"), list(permutations(LIBRARIES, 2)))
def test_of_two_steps_on_one_processor_the_second_gets_the_process_unless_the_first_spoiled_it(
    tmp_path: Path, first: Loads, second: Loads
):
    pool = _FakeProcesses(tmp_path, 1)
    assert pool.give(first) == 0
    assert pool.give(second) == (1 if (first, second) == ("tvm-runtime", "tvm-compiler") else 0)


def test_the_process_that_has_a_step_s_library_goes_before_one_that_had_to_load_it(tmp_path: Path):
    pool = _FakeProcesses(tmp_path, 2)
    assert (pool.give("torch"), pool.give("tvm-compiler")) == (0, 1)
    assert pool.give("tvm-runtime", "another:run") == 1  # the compiler has the runtime; in 0 it would spoil it
    assert pool.give("torch", "one more:run") == 0
    assert pool.give("tvm-compiler", "a second:run") == 1


def test_a_process_with_the_library_gets_the_step_though_there_is_room_for_another(tmp_path: Path):
    pool = _FakeProcesses(tmp_path, 4)
    assert (pool.give("torch"), pool.give("torch", "another:run")) == (0, 0)
    assert pool.give("tvm-compiler") == 1
    assert pool.give("torch", "one more:run") == 0


def test_a_compiler_has_the_runtime_and_is_not_spoiled_by_a_step_that_uses_it():
    loaded = with_library(with_library(frozenset(), "tvm-compiler"), "tvm-runtime")
    assert loaded == {"tvm-compiler"}
    assert can_load(loaded, "tvm-compiler")
    assert has_loaded(loaded, "tvm-runtime")
    assert not has_loaded(frozenset({"tvm-runtime"}), "tvm-compiler")


def test_a_task_carries_what_it_loads_to_a_node(tmp_path: Path):
    task = StepTask("s", "s", "f:f", {}, {}, {}, Resources(1), tmp_path, "tvm-compiler")
    assert task_from_json(task_to_json(task)).loads == "tvm-compiler"
