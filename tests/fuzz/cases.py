"""One case, in a worker process: made, read, and held to the rules."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import NamedTuple

from llm_build.core import system
from llm_build.core.errors import BuildError
from tests.fuzz.kinds import Kind
from tests.fuzz.rules import CANARY, CPU_SECONDS, MEMORY_BYTES, Watch

_CODES = (None, 0, 1, 2)
_LONGEST = 40_000  # characters of an answer to people
_ADDRESSES_BYTES = 8 << 30  # beyond what a worker has: a stop before the machine is full


class Identity(NamedTuple):
    kind: str
    seed: int
    number: int

    def __str__(self) -> str:
        return f"--only {self.kind} --seed {self.seed} --number {self.number}"


class Verdict(NamedTuple):
    """``breach``: which rule was broken and how, "" for none. ``answer``: "" for success, else a user's error."""

    breach: str
    answer: str
    cpu_s: float
    wall_s: float
    peak_bytes: int


class Place:
    """The folders of one worker: cases are made and read in ``case``, which is empty before each."""

    def __init__(self, root: Path, samples: Path) -> None:
        self.root, self.samples, self.case = root, samples, root / "case"
        for name in ("store", "home", "tmp"):
            (root / name).mkdir(parents=True, exist_ok=True)
        os.environ.update(
            LLM_BUILD_STORE=str(root / "store"), HOME=str(root / "home"), TMPDIR=str(root / "tmp"), NO_COLOR="1",
            XDG_CACHE_HOME=str(root / "home"), XDG_DATA_HOME=str(root / "home"), LLM_BUILD_KEYS=str(self.case / "keys"),
            HF_HOME=str(root / "home"), HF_HUB_OFFLINE="1", HYDRA_FULL_ERROR="1",
        )  # fmt: skip
        os.environ.pop("LLM_BUILD_REMOTE", None)
        import tempfile

        tempfile.tempdir = str(root / "tmp")
        self.watch = Watch(root)
        limit_memory()

    def empty(self) -> None:
        os.chdir(self.root)
        shutil.rmtree(self.case, ignore_errors=True)
        self.case.mkdir()
        shutil.copytree(self.samples.parent / "keys", self.case / "keys")
        os.chdir(self.case)


def limit_memory() -> None:
    """Whoever takes gigabytes gets a MemoryError, which is a breach, before the machine is full."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + _ADDRESSES_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_case(place: Place, kind: Kind, identity: Identity) -> Verdict:
    """The same identity is the same case."""
    rng = Random(f"{identity.kind}/{identity.seed}/{identity.number}")
    place.empty()
    kind.prepare(rng, place.samples, place.case)
    outside = _names_around(place.root)
    system.reset_peak()
    before = system.peak_bytes()
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace") for _ in range(2))
    start, cpu = time.monotonic(), _cpu_s()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _armed(place.watch):
        answer, breach = _answer(kind, rng, place)
    cpu, wall = _cpu_s() - cpu, time.monotonic() - start
    printed = "".join(
        stream.buffer.getvalue().decode("utf-8", "replace") for stream in (out, err) if not stream.flush()
    )
    breach = breach or "; ".join(place.watch.breaches) or _in_print(printed) or _in_folders(place, outside)
    peak = max(0, system.peak_bytes() - before)
    if not breach and cpu > CPU_SECONDS:
        breach = f"took {cpu:.1f} s of processor time"
    if not breach and peak > MEMORY_BYTES:
        breach = f"took {peak / 1e9:.1f} GB"
    place.watch.breaches.clear()
    return Verdict(breach, answer, cpu, wall, peak)


def _answer(kind: Kind, rng: Random, place: Place) -> tuple[str, str]:
    """(the error's first words, the breach)."""
    try:
        code = kind.read(rng, place.case)
        return "", "" if not isinstance(code, int) or code in _CODES else f"exit code {code}"
    except BuildError as error:
        long = len(error.message) + len(error.hint) > _LONGEST
        return f"{type(error).__name__}: {error.message}"[:200], "an answer without end" if long else _in_print(
            error.message
        )
    except SystemExit as error:
        return f"exit {error.code}", "" if error.code in _CODES else f"exit code {error.code}"
    except KeyboardInterrupt:
        raise
    except BaseException:
        return "", traceback.format_exc(limit=-12)


def _cpu_s() -> float:
    """Of this process and of those that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


@contextlib.contextmanager
def _armed(watch: Watch) -> Iterator[None]:
    watch.armed = True
    try:
        yield
    finally:
        watch.armed = False


def _in_print(text: str) -> str:
    marks = ("Traceback (most recent call last)", "a defect in llm-build", "PanicException")
    return next(
        (f"{mark!r} is printed: {text[max(0, text.find(mark) - 200) :][:1500]}" for mark in marks if mark in text), ""
    )


def _names_around(root: Path) -> set[str]:
    """What lies where nothing may be written, C code's files too."""
    return {f"{folder}/{name}" for folder in (root.parent, "/tmp", Path.cwd().root) for name in os.listdir(folder)
            if not name.startswith(("worker-", "pytest", "torch", "w", "."))}  # fmt: skip


def _in_folders(place: Place, outside: set[str]) -> str:
    for folder in (place.case, place.root, place.root / "home", place.root / "tmp"):
        if (folder / CANARY).exists():
            return f"{folder / CANARY} is there: something was executed"
    fresh = {name for name in _names_around(place.root) - outside if "fuzz" in name}
    return f"written outside: {', '.join(sorted(fresh))}" if fresh else ""


def keep(place: Place, folder: Path, text: str) -> None:
    """The case's folder, as it was left, and what was wrong."""
    os.chdir(place.root)
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    place.case.rename(folder)
    (folder.parent / f"{folder.name}.txt").write_text(text, "utf-8", "backslashreplace")
    sys.stdout.flush()
