"""Stores, here and shared, with entries that are damaged, forged or no files; the toy recipe is built on them."""

from __future__ import annotations

import importlib
import os
import shutil
from pathlib import Path
from random import Random

from llm_build.core import check, gc
from llm_build.core.errors import BuildError, StepError
from llm_build.core.filestore import FileStore, open_store
from llm_build.core.run import run
from llm_build.core.task import StepResult, TaskDone, TaskReport
from llm_build.executors.output import StoreOut
from llm_build.remote.location import Location
from llm_build.remote.store import open_shared
from tests.core import toy
from tests.fuzz import samples
from tests.fuzz.damage import put_something_else, remove
from tests.fuzz.kinds import Case, Kind
from tests.fuzz.kinds_of_checkpoints import spoil_json
from tests.fuzz.kinds_of_commands import each, put_or_spoil, spoil_record
from tests.remote.machine import Hands


class Worker(Hands):
    """As a worker process does, whatever a step raises is its failure."""

    def wait(self, timeout_s: float) -> list[TaskReport]:
        if not self.jobs:
            return []
        job = self.jobs.pop(0)
        reports: list[TaskReport] = []
        module, _, function = job.function.partition(":")
        try:
            out = StoreOut(job, self.store, reports.append)
            getattr(importlib.import_module(module), function)(job.params, job.inputs, out)
            result = StepResult(out.finish())
        except BuildError as error:
            return [*reports, TaskDone(job.id, None, error)]
        except Exception as error:
            return [*reports, TaskDone(job.id, None, StepError(f"{type(error).__name__}: {error}"))]
        return [*reports, TaskDone(job.id, result)]


def prepare_store(rng: Random, root: Path, case: Case) -> None:
    shutil.copytree(root / "toy" / "store", case / "store")
    for _ in range(rng.choice([1, 1, 2, 3])):
        _spoil_store(rng, case / "store")


def _spoil_store(rng: Random, store: Path) -> None:
    files = sorted(path for path in store.rglob("*") if path.is_file() and not path.is_symlink())
    path, way = rng.choice(files), rng.random()
    if way < 0.12:
        put_something_else(rng, rng.choice(sorted(path for path in store.rglob("*") if path != store)))
    elif way < 0.2:
        _add_entry(rng, store)
    elif path.parent.parent.name == "records":
        spoil_record(rng, path)
    elif path.suffix == ".json" and way < 0.7:
        spoil_json(rng, path)
    elif path.parent.parent.name == "blobs" and way < 0.5:
        _forge(rng, path)
    else:
        put_or_spoil(rng, path)


def _forge(rng: Random, path: Path) -> None:
    """Other bytes of the same size and time."""
    status, data = path.stat(), bytearray(path.read_bytes())
    path.chmod(0o644)
    if data:
        data[rng.randrange(len(data))] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def _add_entry(rng: Random, store: Path) -> None:
    """Something where a store keeps only things of its own kind."""
    name = rng.choice(
        ["x", "y" * 255, ".hidden", "a.json", "ab", "ab/" + "c" * 62, f"ab/{'ab' * 32}.json", "-x", "\n", "é"]
    )
    folder = store / rng.choice(
        ["records", "blobs", "places", "code", "cache", "logs", "locks", "tmp", "", "cache/compose"]
    )
    try:
        remove(folder / name)
        put_something_else(rng, folder / name)
    except OSError:
        pass  # a link stands in the way


def read_store(rng: Random, case: Case) -> None:
    source = samples.root_of(case) / "toy" / "source.bin"
    try:
        store = open_store(case / "store", rng.choice(["own", "signed", "all"]))
    except BuildError:
        return
    keys = [path.stem for path in (case / "store" / "records").glob("*/*.json")]
    steps = [
        lambda: [store.load(key, repair=False) for key in keys],
        lambda: check.check(store, repair=rng.random() < 0.3),
        lambda: gc.gc(store, max_age_s=rng.choice([None, 0.0, 1e9]), dry_run=rng.random() < 0.5),
        lambda: _build(store, source),
        lambda: _build(open_store(case / "store"), source),
    ]
    each(*rng.sample(steps[:3], rng.choice([1, 2, 3])), *steps[3:])


def _build(store: FileStore, source: Path) -> None:
    """The toy recipe on a store, as `build` runs one."""
    try:
        outcome = run(toy.plan(source), store, Worker(store), lambda event: None)
        store.drain(lambda event: None)
        if not outcome.failed:
            _check_result(outcome, store)
    finally:
        store.stop()


def _check_result(outcome: object, store: FileStore) -> None:
    """What a build says it made is there."""
    for output in outcome.records["p"].outputs.values():  # type: ignore[attr-defined]
        assert output.of or os.path.isfile(store.path(output.digest)), "a build succeeded without its result"


def prepare_remote(rng: Random, root: Path, case: Case) -> None:
    shutil.copytree(root / "toy" / "remote", case / "remote")
    for _ in range(rng.choice([1, 1, 2, 4])):
        files = sorted(path for path in (case / "remote").rglob("*") if path.is_file() and not path.is_symlink())
        path = rng.choice(files)
        spoil_record(rng, path) if path.parent.parent.name == "records" else put_or_spoil(rng, path)


def read_remote(rng: Random, case: Case) -> None:
    location = Location(f"file://{case}/remote", rng.choice(["write", "readonly"]), timeout_s=5.0)
    source = samples.root_of(case) / "toy" / "source.bin"
    each(lambda: _build(open_shared(case / "store", location, rng.choice(["signed", "all"])), source))


KINDS = [Kind("store", prepare_store, read_store, 24), Kind("remote", prepare_remote, read_remote, 3)]
