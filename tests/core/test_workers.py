"""Real worker processes: what a step sees, and what becomes of a step that ends badly."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_build.core.errors import StepError, UserError
from llm_build.core.events import Event, Progress, Warned
from llm_build.core.examine import examine
from llm_build.core.filestore import FileStore, open_store
from llm_build.core.plan import Plan
from llm_build.core.run import Outcome, run
from llm_build.core.step import Input, Resources
from llm_build.core.task import StepTask, TaskDone
from llm_build.executors.local import LocalExecutor, capacity
from tests.core import toy
from tests.core.toy import step_of


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return open_store(tmp_path / "store")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return toy.write_source(tmp_path / "source.bin")


def build(store: FileStore, plan: Plan, events: list[Event] | None = None, workers: int = 2) -> Outcome:
    with LocalExecutor(store, capacity(workers)) as executor:
        return run(plan, store, executor, (events if events is not None else []).append)


def ran(outcome: Outcome) -> list[str]:
    return sorted(done.name for done in outcome.steps.values() if done.status == "ran")


def test_a_build_and_what_touching_moving_and_changing_its_source_redoes(store: FileStore, source: Path) -> None:
    events: list[Event] = []
    outcome = build(store, toy.plan(source), events)
    shards = [f"quantize[{index}]" for index in range(4)]
    assert ran(outcome) == sorted(["fetch", "shard", *shards, "package", "check"])
    assert any(
        isinstance(event, Progress) and (event.done, event.total, event.unit) == (3, 3, "bytes") for event in events
    )
    outputs = outcome.records["p"].outputs
    assert list(outputs) == ["card/README.md", "config.json", *(f"shard_{i}.bin" for i in range(4))]
    assert store.read(outputs["shard_2.bin"].digest) == b"C" * 3000
    assert (outcome.steps["p"].nbytes, outcome.steps["p"].facts) == (4 * 3000 + 2 + 9, {"shards": 4})
    assert outcome.records["q[0]"].peak_memory_bytes > 1 << 20

    os.utime(source)
    assert examine(toy.plan(source), store)["f"].reason == "source.bin touched"
    assert ran(build(store, toy.plan(source))) == ["fetch"]
    source = source.rename(source.parent / "moved.bin")
    assert ran(build(store, toy.plan(source))) in ([], ["fetch"])  # renaming changes ctime on some file systems
    data = bytearray(source.read_bytes())
    data[1500] ^= 1
    source.write_bytes(data)
    assert ran(build(store, toy.plan(source))) == ["check", "fetch", "package", "quantize[1]"]
    assert ran(build(store, toy.plan(source, repeat=4))) == sorted([*shards, "package", "check"])
    assert ran(build(store, toy.plan(source))) == []


def test_a_red_validation_keeps_the_artifact(store: FileStore, source: Path) -> None:
    outcome = build(store, toy.plan(source, most=5))
    assert (outcome.goal("toy"), outcome.exit_code) == ("failed", 1)
    assert outcome.steps["c"].error
    assert outcome.steps["c"].error.message == "too many bytes"
    assert ran(build(store, toy.plan(source))) == ["check"]


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        (
            "raise",
            StepError,
            r"^ZeroDivisionError: one by zero\n    about to raise\n    Traceback[^\n]*\n[^\n]*toy.py",
        ),
        ("user", UserError, r"the tensor is wrong$"),
        ("kill", StepError, r"^the process was killed by SIGKILL\n    about to kill$"),
        ("segfault", StepError, r"^the process was killed by SIGSEGV\n    about to segfault"),
        ("exit", StepError, r"^the process ended with code 7\n    about to exit$"),
        ("forget", StepError, r"the step did not write its output 'promised'"),
    ],
)
def test_bad_ends(store: FileStore, how: str, kind: type[Exception], message: str) -> None:
    outcome = build(store, toy.single(how))
    error = outcome.steps["m"].error
    assert type(error) is kind
    assert re.search(message, error.message, re.DOTALL), error.message
    assert outcome.exit_code == (2 if kind is UserError else 1)
    assert not list((store.root / "records").glob("*/*"))
    assert not list((store.root / "tmp").iterdir())
    assert examine(toy.single(how), store)["m"].reason == "never built"


def test_a_figure_that_is_not_finite_is_recorded_as_a_word(store: FileStore) -> None:
    outcome = build(store, toy.single("", "overflow"))
    assert outcome.steps["m"].status == "ran"
    assert outcome.records["m"].facts == {"figures": {"kl": "inf", "row": ["nan", 1.5]}}
    again = build(store, toy.single("", "overflow"))
    assert (again.steps["m"].status, again.records["m"].facts) == ("fresh", outcome.records["m"].facts)


def test_a_module_that_does_not_import_is_a_failed_step(store: FileStore, tmp_path: Path) -> None:
    step = step_of("m", "lower", "tests.core.toy:no_such_function", {})
    error = build(store, Plan({"m": step}, ())).steps["m"].error
    assert error
    assert "has no attribute 'no_such_function'" in error.message


def test_a_dead_worker_is_replaced(store: FileStore) -> None:
    bad = step_of("a", "bad", "tests.core.toy:misbehave", {"how": "kill"})
    good = [step_of(f"g{i}", f"g{i}", "tests.core.toy:misbehave", {"how": "environment", "n": i}) for i in range(3)]
    plan = Plan({step.id: step for step in (bad, *good)}, ())
    with LocalExecutor(store, capacity(1)) as executor:
        outcome = run(plan, store, executor, lambda event: None, keep_going=True)
    assert [outcome.steps[step.id].status for step in (bad, *good)] == ["failed", "ran", "ran", "ran"]


OUTSIDE = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT]


@pytest.mark.parametrize("number", OUTSIDE, ids=[number.name for number in OUTSIDE])
def test_a_step_killed_from_outside_begins_once_more(store: FileStore, tmp_path: Path, number: signal.Signals) -> None:
    events: list[Event] = []
    outcome = build(store, toy.single("", "victim", signal=int(number), lives=str(tmp_path / "lives")), events)
    assert outcome.steps["m"].status == "ran"
    assert (tmp_path / "lives").read_text() == "xx"
    assert json.loads(store.read(outcome.records["m"].outputs["done"].digest)) == []  # its folder was fresh
    assert [event for event in events if isinstance(event, Warned)] == [
        Warned("m", "lower", f"its process was killed by {number.name} from outside: started once more")
    ]
    assert outcome.records["m"].warnings == ()  # nothing to say of a result that is whole


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE])
def test_a_step_that_crashed_by_itself_is_not_tried_again(store: FileStore, tmp_path: Path, number: int) -> None:
    outcome = build(store, toy.single("", "victim", signal=int(number), lives=str(tmp_path / "lives")))
    assert (outcome.steps["m"].status, (tmp_path / "lives").read_text()) == ("failed", "x")


def test_the_second_death_is_the_end_of_it(store: FileStore) -> None:
    events: list[Event] = []
    outcome = build(store, toy.single("kill"), events)
    error = outcome.steps["m"].error
    assert error
    assert (error.message, error.hint) == (
        "the process was killed by SIGKILL\n    about to kill",
        "most often the system ran out of memory: close other programs, or build with -j 1",
    )
    assert sum(isinstance(event, Warned) for event in events) == 1


def test_workers_are_reused_and_have_the_threads_of_their_step(store: FileStore) -> None:
    steps = [
        step_of(f"s{i}", f"s{i}", "tests.core.toy:misbehave", {"how": "environment", "n": i}, resources=Resources(cpu))
        for i, cpu in enumerate([1, 1, 2, 9])
    ]
    with LocalExecutor(store, capacity(2)) as executor:
        outcome = run(Plan({step.id: step for step in steps}, ()), store, executor, lambda event: None)
    found = [json.loads(store.read(outcome.records[step.id].outputs["done"].digest)) for step in steps]
    assert [(variable, threads) for variable, threads, _ in found] == [("1", 1), ("1", 1), ("2", 2), ("2", 2)]
    assert found[2][2] == found[3][2]
    assert os.getpid() not in {pid for _, _, pid in found}


def test_steps_that_run_together_have_gpus_of_their_own(store: FileStore, tmp_path: Path) -> None:
    steps = []
    for name, wanted in {"one": 1, "two": 1, "both": 2, "none": 0}.items():
        (tmp_path / str(wanted)).mkdir(exist_ok=True)
        params = {"name": name, "folder": str(tmp_path / str(wanted)), "together": 2 if wanted == 1 else 1}
        steps.append(step_of(name, name, "tests.core.toy:gpu", params, resources=Resources(1, 0, wanted)))
    with LocalExecutor(store, Resources(4, 0, 2)) as executor:
        outcome = run(Plan({step.id: step for step in steps}, ()), store, executor, lambda event: None)
    seen = {step.id: store.read(outcome.records[step.id].outputs["done"].digest).decode() for step in steps}
    assert sorted([seen["one"], seen["two"]]) == ["0", "1"]
    assert (seen["both"], seen["none"]) == ("0,1", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))


def test_slices_of_an_output_and_links(store: FileStore) -> None:
    first = step_of("a", "first", "tests.core.toy:misbehave", {"how": "slice"})
    inputs = {"part": Input("a", "part"), "whole": Input("a", "whole")}
    second = step_of("b", "second", "tests.core.toy:misbehave", {"how": "link"}, inputs)
    outcome = build(store, Plan({"a": first, "b": second}, ()))
    made, whole = outcome.records["b"].outputs, outcome.records["a"].outputs["whole"]
    assert (store.read(made["copied"].digest), made["linked"]) == (b"3456", whole)
    assert len(list((store.root / "blobs").glob("*/*"))) == 2
    assert outcome.steps["a"].nbytes == 10


def test_workers_end_with_the_executor(store: FileStore) -> None:
    with LocalExecutor(store, capacity(1)) as executor:
        outcome = run(toy.single("environment"), store, executor, lambda event: None)
    pid = json.loads(store.read(outcome.records["m"].outputs["done"].digest))[2]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_warnings_are_told_and_told_again_with_the_hit(store: FileStore) -> None:
    for status in ("ran", "fresh"):
        events: list[Event] = []
        assert build(store, toy.single("warn"), events).steps["m"].status == status
        assert [event for event in events if isinstance(event, Warned)] == [Warned("m", "lower", "be careful")]


def test_a_log_is_kept(store: FileStore) -> None:
    outcome = build(store, toy.single("warn"))
    assert (store.root / "logs" / f"{outcome.steps['m'].key}.log").read_text() == "about to warn\n"


def test_a_source_that_changes_while_it_is_read_is_refused(store: FileStore, source: Path) -> None:
    outcome = build(store, toy.single("touch", watch=str(source)))
    error = outcome.steps["m"].error
    assert error
    assert error.message.startswith("source.bin changed while lower was reading it (")
    assert not list((store.root / "records").glob("*/*"))


def test_a_source_that_changes_after_it_was_fetched_is_refused_too(store: FileStore, source: Path) -> None:
    class Meddler(LocalExecutor):
        def submit(self, job: StepTask) -> None:
            if job.name == "quantize[0]":
                os.utime(source)
            super().submit(job)

    with Meddler(store, capacity(1)) as executor:
        outcome = run(toy.plan(source), store, executor, lambda event: None)
    assert outcome.steps["q[0]"].error
    assert "changed while quantize[0] was reading it" in outcome.steps["q[0]"].error.message
    assert build(store, toy.plan(source)).exit_code == 0


def test_a_source_that_is_gone_is_a_failed_step(store: FileStore, source: Path) -> None:
    source.unlink()
    outcome = build(store, toy.plan(source))
    assert outcome.steps["f"].error
    assert "source.bin cannot be read: No such file" in outcome.steps["f"].error.message
    assert outcome.exit_code == 2


def test_damage_anywhere_is_found_named_and_mended(store: FileStore, source: Path) -> None:
    first = build(store, toy.plan(source))
    blob = store.path(first.records["q[1]"].outputs["shard_1.bin"].digest)
    blob.chmod(0o644)
    blob.write_bytes(b"B" * 2999 + b"!")
    reasons = {name: verdict.reason for name, verdict in examine(toy.plan(source), store).items()}
    assert reasons["q[1]"].startswith("blob damaged: shard_1.bin (blake3:")
    outcome = build(store, toy.plan(source))
    assert ran(outcome) == ["quantize[1]"]
    assert blob.read_bytes() == b"B" * 3000
    assert ran(build(store, toy.plan(source))) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "tiny"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, check=False
    )
    if mounted.returncode or not shutil.which("umount"):
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_a_clear_failure_and_leaves_nothing(tiny_disk: Path) -> None:
    store = open_store(tiny_disk / "store")
    plan = toy.single("fill", nbytes=2_000_000)
    assert build(store, plan).exit_code == 0
    outcome = build(store, toy.single("fill", nbytes=2_000_001))
    error = outcome.steps["m"].error
    assert error
    assert re.match(r"could not write: the disk is full \(\d+ MB free at .*store\)", error.message)
    assert not list((store.root / "tmp").iterdir())
    assert build(store, plan).steps["m"].status == "fresh"


def test_stop_ends_running_steps_at_once(store: FileStore, tmp_path: Path) -> None:
    store.start()
    with LocalExecutor(store, capacity(1)) as executor:
        job = StepTask("q", "q", "time:sleep", {}, {}, {}, Resources(), store.scratch())
        executor.submit(job)
        executor.stop()
        assert executor.wait(0) == []
        executor.submit(job._replace(function="tests.core.toy:misbehave", params={"how": "warn"}))
        reports = []
        while not any(isinstance(report, TaskDone) for report in reports):
            reports += executor.wait(5)
    store.stop()
