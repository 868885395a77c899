"""Eight builds of four overlapping recipes on one store, killed and started again at random. What they leave must be
whole, and the bytes those of a quiet build.

    python -m tools.store_storm [--seconds 120] [--seed 0] [--real]

Recipes are the toy's, or with --real the demo's through `build`. Of the builds some are killed (SIGKILL, SIGTERM), some
interrupted (SIGINT), some lose a worker, some are left alone. When every recipe was built once in a round, all are
killed, the store is looked at, completed, compared, and the next round begins with an empty one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, NamedTuple

from llm_build.core.check import check
from llm_build.core.filestore import FileStore
from tests.conftest import ROOT, bytes_of
from tests.core import toy

SLOTS = 8
STUCK_S = 300.0  # a build that takes so long waits for something that never comes; a busy disk may take minutes to sync
Command = Callable[[Path], list[str]]  # folder of a round -> what builds one recipe there, in its "store" and "dist"


class Blow(NamedTuple):
    """What will happen to a build, and how many seconds after its start."""

    after_s: float
    number: signal.Signals | None  # None: nothing
    worker: bool = False  # one of its workers, not itself


class Slot:
    def __init__(self, name: str, command: list[str], blow: Blow, said: IO[bytes]) -> None:
        self.name = name
        self.blow = blow
        self.said = said
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, env=environment())
        self.started = time.monotonic()
        self.struck = False

    def strike(self) -> str:
        """What was done to it, "" when there is nothing to do (yet)."""
        if self.struck or self.blow.number is None or time.monotonic() - self.started < self.blow.after_s:
            return ""
        workers = descendants(self.process.pid)
        if self.blow.worker and not workers:
            return ""
        self.struck = True
        victim = max(workers) if self.blow.worker else self.process.pid
        try:
            os.kill(victim, self.blow.number)
        except ProcessLookupError:
            return ""
        if self.blow.worker:
            return f"worker {self.blow.number.name}"
        self.process.wait(STUCK_S)
        wait_until_gone(workers)
        return self.blow.number.name

    def ended(self) -> bool:
        """Whether it is over; AssertionError when it ended in a way that nothing explains, or never does."""
        code = self.process.poll()
        assert code is not None or time.monotonic() - self.started < STUCK_S, f"{self.name} hangs:\n{self.text()}"
        if code is None:
            return False
        allowed = {0} if not self.struck or self.blow.worker else {0, 130, -int(self.blow.number or 0)}
        if self.struck and self.blow.number is signal.SIGINT and "KeyboardInterrupt" in self.text():
            allowed.add(1)  # it hit the interpreter that was still starting
        assert code in allowed, f"{self.name} ended with {code}, {self.blow}:\n{self.text()}"
        return True

    def text(self) -> str:
        self.said.seek(0)
        return self.said.read().decode()[-3000:]


class Storm:
    """``folder`` holds one folder per round; ``seconds`` a quiet build takes scales when the blows fall."""

    def __init__(self, recipes: Mapping[str, Command], folder: Path, rng: random.Random) -> None:
        self.recipes = recipes
        self.folder = folder
        self.rng = rng
        self.tally: Counter[str] = Counter()
        self.quiet_s = 0.0
        self.wanted = self.quiet()

    def quiet(self) -> dict[str, bytes]:
        """Every result of all recipes, built one after the other in peace."""
        folder = self.folder / "quiet"
        for name, command in self.recipes.items():
            begun = time.monotonic()
            self.plain(name, command(folder))
            self.quiet_s = max(self.quiet_s, time.monotonic() - begun)
        return content(folder)

    def plain(self, name: str, command: list[str]) -> None:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=STUCK_S, env=environment()
        )
        assert done.returncode == 0, f"{name}: {done.stdout[-1000:]}\n{done.stderr[-3000:]}"

    def rage(self, seconds: float) -> None:
        end, number = time.monotonic() + seconds, 0
        while time.monotonic() < end:
            number += 1
            folder = self.folder / f"round-{number}"
            self.round(folder, end)
            self.look(folder)
            shutil.rmtree(folder)

    def round(self, folder: Path, end: float) -> None:
        """Until every recipe was built once, or the time is over. Then all are killed."""
        slots: list[Slot] = []
        built: set[str] = set()
        with tempfile.TemporaryDirectory() as logs:
            while time.monotonic() < end and built < self.recipes.keys():
                for slot in list(slots):
                    if what := slot.strike():
                        self.tally[what] += 1
                    if slot.ended():
                        slots.remove(slot)
                        self.tally["finished"] += slot.process.returncode == 0
                        built |= {slot.name} if slot.process.returncode == 0 else set()
                while len(slots) < SLOTS:
                    slots.append(self.begin(folder, Path(logs)))
                time.sleep(0.01)
            for slot in slots:
                workers = descendants(slot.process.pid)
                slot.process.kill()
                slot.process.wait()
                wait_until_gone(workers)
        self.tally["rounds"] += 1

    def begin(self, folder: Path, logs: Path) -> Slot:
        self.tally["started"] += 1
        name = self.rng.choice(list(self.recipes))
        number = self.rng.choice([signal.SIGKILL, signal.SIGTERM, signal.SIGINT, None])
        worker = number is signal.SIGKILL and self.rng.random() < 0.3
        blow = Blow(self.rng.uniform(0.0, 1.5 * self.quiet_s), number, worker)
        return Slot(name, self.recipes[name](folder), blow, open(logs / str(self.tally["started"]), "w+b"))

    def look(self, folder: Path) -> None:
        """The store as the storm left it is whole; completed, it has the bytes of the quiet one and nothing else."""
        if (folder / "store").exists():
            left = check(FileStore(folder / "store"))
            assert left.whole, left.faults
        for name, command in self.recipes.items():
            self.plain(name, command(folder))
        found = content(folder)
        assert found.keys() == self.wanted.keys(), sorted(found.keys() ^ self.wanted.keys())
        assert not [name for name in found if found[name] != self.wanted[name]]
        done = check(FileStore(folder / "store"))
        assert (done.faults, done.leftovers, done.orphans) == ((), (), 0), done


def content(folder: Path) -> dict[str, bytes]:
    """Every result by name: records without their times, blobs with their bytes, and the artifacts of ``dist``."""
    found: dict[str, bytes] = {}
    for path in sorted((folder / "store" / "records").glob("*/*.json")):
        record = json.loads(path.read_bytes().split(b"\n")[0])
        outputs = {name: output["digest"] for name, output in record["outputs"].items()}
        found[path.name] = json.dumps([outputs, record["parts"]], sort_keys=True).encode()
    for path in sorted((folder / "store" / "blobs").glob("*/*")):
        found[path.name] = path.read_bytes()
    for artifact in sorted((folder / "dist").glob("*")):
        found.update({f"{artifact.name}/{name}": data for name, data in bytes_of(artifact).items()})
    return found


def descendants(pid: int) -> set[int]:
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found.add(int(stat.parent.name))
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run; a zombie that nobody has reaped yet does not."""
    found = set()
    for pid in pids:
        try:
            if (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                found.add(pid)
        except OSError:
            continue
    return found


def wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 5
    while alive(pids):
        assert time.monotonic() < deadline, "workers outlive their coordinator"
        time.sleep(0.01)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT / "tools" / "path")}


def toys(source: Path) -> dict[str, Command]:
    """Four recipes that share most steps: another scheme, another validation, fewer shards."""
    toy.write_source(source, 8)
    variants: dict[str, dict[str, object]] = {
        "first": {}, "other scheme": {"repeat": 4}, "other check": {"most": 10**8}, "fewer shards": {"shards": 6},
    }  # fmt: skip

    def command(given: dict[str, object]) -> Command:
        words = {"source": str(source), "shards": 8, "sleep_s": 0.03, **given}
        said = [f"{key}={json.dumps(value)}" for key, value in words.items()]
        return lambda folder: [sys.executable, "-m", "tests.core.toy", str(folder / "store"), *said]

    return {name: command(given) for name, given in variants.items()}


def demos() -> dict[str, Command]:
    """The demo in four schemes: one checkpoint, one weight map, two of the libraries shared by none."""

    def command(scheme: str) -> Command:
        words = [sys.executable, "-m", "llm_build", f"quant={scheme}", "verify=off"]
        return lambda folder: [*words, f"store.path={folder / 'store'}", f"dist.path={folder / 'dist'}"]

    return {scheme: command(scheme) for scheme in ("q0f16", "q4f16_1", "q4f16_0", "q8f16_1")}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=120.0)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--real", action="store_true", help="the demo through `build`, not the toy")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        storm = Storm(demos() if given.real else toys(folder / "source.bin"), folder, random.Random(given.seed))
        storm.rage(given.seconds)
    print(", ".join(f"{count} {what}" for what, count in sorted(storm.tally.items())))
    print("every store whole, every result that of the quiet build")


if __name__ == "__main__":
    main()
