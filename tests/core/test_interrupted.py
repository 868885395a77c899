"""Kill it, interrupt it, start it twice: the store stays whole and the next plain build ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from llm_build.core.check import check
from llm_build.core.filestore import VERSION, FileStore, open_store
from tests.core import toy
from tools.store_storm import Storm, alive, descendants, toys, wait_until_gone

ROOT = Path(__file__).parents[2]


def start(store: Path, source: Path, **settings: object) -> subprocess.Popen[str]:
    given = [f"{key}={json.dumps(value)}" for key, value in {"source": str(source), **settings}.items()]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.core.toy", str(store), *given],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process: subprocess.Popen[str]) -> dict[str, str]:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    statuses: dict[str, str] = json.loads(out)
    return statuses


def leftovers(store: Path) -> list[str]:
    return [path.name for folder in ("tmp", "locks") for path in (store / folder).iterdir() if path.name != "builds"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return toy.write_source(tmp_path / "source.bin", 8)


SIZE = {"shards": 8, "sleep_s": 0.03}


def test_a_store_that_another_build_makes_meanwhile_is_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its VERSION was looked for when there was none, its folders are seen when there are some."""
    listed = os.listdir

    def after_another(path: Path) -> list[str]:
        (tmp_path / "VERSION").write_text(VERSION)
        (tmp_path / "blobs").mkdir()
        return listed(path)

    monkeypatch.setattr(os, "listdir", after_another)
    assert open_store(tmp_path).root == tmp_path


def test_eight_builds_killed_and_restarted_at_random(tmp_path: Path, source: Path) -> None:
    """`python -m tools.store_storm` is the long form, through `build` with --real."""
    storm = Storm(toys(source), tmp_path, random.Random(7))
    storm.rage(6.0)
    assert storm.tally["rounds"] >= 1
    assert sum(storm.tally[name] for name in ("SIGKILL", "SIGTERM", "SIGINT")) > 3


def test_two_builds_at_once_run_each_step_once(tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    builds = [start(store, source, **SIZE) for _ in range(3)]
    results = [finish(process) for process in builds]
    count = Counter(name for statuses in results for name, status in statuses.items() if status == "ran")
    assert set(count.values()) == {1}
    assert len(count) == 12
    assert all(status in ("ran", "fresh") for statuses in results for status in statuses.values())
    assert (check(FileStore(store)).whole, leftovers(store)) == (True, [])


def test_waiting_for_another_build_is_said(tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    first = start(store, source, shards=1, sleep_s=1.0)
    while not list(store.glob("locks/*")) or not list(store.glob("records/*/*")):
        time.sleep(0.01)
    second = start(store, source, shards=1, sleep_s=1.0)
    _, said = second.communicate(timeout=60)
    finish(first)
    assert f"Waiting(id='q[0]', name='quantize[0]', pid={first.pid})" in said
    assert "reason='built by another build'" in said


def test_a_build_goes_on_when_the_one_it_waits_for_is_killed(tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    first = start(store, source, shards=1, sleep_s=30.0)
    while not any("quantize[0]" in line for line in first.stderr or ()):
        pass
    assert first.poll() is None
    second = start(store, source, shards=1, sleep_s=30.0)
    while not any("Waiting(id='q[0]'" in line for line in second.stderr or ()):
        pass
    workers = descendants(first.pid)
    first.kill()
    first.communicate()
    wait_until_gone(workers)
    assert any("Started(id='q[0]'" in line for line in second.stderr or ())
    second.send_signal(signal.SIGINT)
    second.communicate(timeout=10)
    assert second.returncode == 130


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path, source: Path) -> None:
    store = tmp_path / "store"
    process = start(store, source, shards=8, sleep_s=0.3)
    deadline = time.monotonic() + 20
    while len(list(store.glob("records/*/*.json"))) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    workers = descendants(process.pid)
    assert workers
    os.kill(process.pid, signal.SIGINT)
    begun = time.monotonic()
    _, said = process.communicate(timeout=20)
    assert time.monotonic() - begun < 1.0
    assert (process.returncode, leftovers(store)) == (130, [])
    assert "finished steps are kept run the same command again to go on" in said
    assert not alive(workers)
    kept = len(list(store.glob("records/*/*.json")))
    assert kept >= 4
    statuses = finish(start(store, source, shards=8, sleep_s=0.3))
    assert Counter(statuses.values()) == {"fresh": kept, "ran": 12 - kept}


def test_workers_do_not_hear_the_terminals_ctrl_c(tmp_path: Path, source: Path) -> None:
    process = start(tmp_path / "store", source, shards=1, sleep_s=5.0)
    while not any("Started(id='q[0]'" in line for line in process.stderr or ()):
        pass
    workers = descendants(process.pid)
    assert workers
    groups = {os.getpgid(pid) for pid in workers}
    assert os.getpgid(process.pid) not in groups
    process.kill()
    process.communicate()
    wait_until_gone(workers)
