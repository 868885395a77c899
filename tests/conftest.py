"""A `build` command for tests: run as a user runs it, in a folder and with a store of its own; signals for children."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.slow import LONG, SLOW, entry_of, unit_of

ROOT = Path(__file__).resolve().parent.parent
SENT_BY_TESTS = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM)


def pytest_configure() -> None:
    stop_ignoring_signals()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what tests/slow.py lists. What takes long comes first, so that no core is left with it at the end."""
    entries: dict[str, set[str]] = {}
    for item in items:
        if entry := entry_of(item.nodeid):
            item.add_marker(pytest.mark.slow)
            entries.setdefault(unit_of(item.nodeid), set()).add(entry)
    costs = Counter({unit: sum(SLOW[entry] for entry in each) for unit, each in entries.items()})
    costs.update(LONG)
    items.sort(key=lambda item: -costs[unit_of(item.nodeid)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For --dist loadfile: units in the order above. xdist's own begins with the files of many tests: one test that
    takes two minutes is then the last."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

    config.option.loadscopereorder = False
    return Units(config, log)


def stop_ignoring_signals() -> None:
    """Children inherit what this process ignores: SIGHUP under nohup, SIGINT and SIGQUIT in the background of a shell.
    They do not inherit handlers; so one that does nothing protects this process and leaves its children the default."""
    for number in SENT_BY_TESTS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@dataclass(frozen=True)
class Shell:
    """A folder to work in and a store."""

    folder: Path
    store: Path

    def environment(self) -> dict[str, str]:
        path = os.pathsep.join(filter(None, (str(ROOT / "tools" / "path"), os.environ.get("PYTHONPATH"))))
        return {**os.environ, "LLM_BUILD_STORE": str(self.store), "PYTHONPATH": path}

    def run(self, *words: str, code: int | None = 0, **options: Any) -> subprocess.CompletedProcess[str]:
        """`build WORDS`; fails the test when the exit code is not ``code`` (None: any)."""
        command = [sys.executable, "-m", "llm_build", *words]
        where = {"cwd": self.folder, "env": self.environment()}
        done = subprocess.run(command, **where, capture_output=True, text=True, check=False, timeout=500, **options)
        assert code is None or done.returncode == code, (
            f"build {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def json(self, *words: str, code: int | None = 0) -> dict[str, Any]:
        return json.loads(self.run(*words, "--json", code=code).stdout)

    def statuses(self, *words: str, code: int | None = 0) -> dict[str, str]:
        """{step: status} of the only recipe."""
        return {s["name"]: s["status"] for s in self.json(*words, code=code)["recipes"][0]["steps"]}

    def ran(self, *words: str) -> set[str]:
        return {name for name, status in self.statuses(*words).items() if status == "ran"}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "work").mkdir()
    return Shell(tmp_path / "work", tmp_path / "store")


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The demo, built once for all tests with the default recipe. Tests that change it use their own dist folder."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "work").mkdir()
    shell = Shell(folder / "work", folder / "store")
    shell.run("build")
    return shell


def bytes_of(folder: Path) -> Mapping[str, bytes]:
    """Every file of a folder, build.json without its times."""
    found = {f.relative_to(folder).as_posix(): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}
    found["build.json"] = json.dumps(without_times(json.loads(found["build.json"])), sort_keys=True).encode()
    return found


def without_times(value: Any) -> Any:
    """JSON without what says when and how long."""
    if isinstance(value, dict):
        return {
            k: without_times(v) for k, v in value.items() if not (k.endswith("On") or "seconds" in k or "started" in k)
        }
    return [without_times(v) for v in value] if isinstance(value, list) else value
