"""A sweep on three nodes of a Ray cluster, one of which is killed at a random moment. What is built must be, byte for
byte, what this machine builds alone.

    python -m tools.cluster_storm [--times 10] [--seed 0]

The coordinator's store and the shared one are new and empty each time; a new node takes the killed one's place.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

from tests.cluster.nodes import Nodes
from tests.conftest import ROOT, bytes_of

SWEEP = ("-m", "quant=q0f16,q4f16_1,q8f16_1")
STUCK_S = 300.0


class Told(NamedTuple):
    """How one build with a kill went."""

    seconds: float
    killed_after_s: float
    processes: int  # killed
    moved: int  # steps that were started again elsewhere


def build(folder: Path, said: IO[bytes], *words: str) -> subprocess.Popen[bytes]:
    """`build` with a store and a dist folder of its own in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "LLM_BUILD_STORE": str(folder / "store"), "PYTHONPATH": str(ROOT / "tools" / "path")}
    command = [sys.executable, "-m", "llm_build", *SWEEP, *words]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=said)


def built(folder: Path) -> Mapping[str, Mapping[str, bytes]]:
    """{cell: its files}."""
    return {cell.name: bytes_of(cell) for cell in sorted((folder / "dist").iterdir())}


def on_cluster(nodes: Nodes, remote: Path) -> list[str]:
    return ["executor=ray", f"executor.address={nodes.address}", f"store.remote=file://{remote}"]


def wait(process: subprocess.Popen[bytes], log: Path) -> None:
    code = process.wait(STUCK_S)
    if code:
        raise SystemExit(f"the build ended with {code}:\n{log.read_text()[-4000:]}")


def build_quietly(folder: Path) -> tuple[Mapping[str, Mapping[str, bytes]], float]:
    """What this machine makes alone, and how long it takes."""
    started = time.monotonic()
    folder.mkdir(parents=True)
    with open(folder / "log", "wb") as said:
        wait(build(folder, said), folder / "log")
    return built(folder), time.monotonic() - started


def build_with_a_kill(nodes: Nodes, folder: Path, after_s: float, index: int) -> Told:
    """The sweep on the cluster; node ``index`` is killed ``after_s`` seconds after the first step began."""
    folder.mkdir(parents=True)
    log = folder / "log"
    with open(log, "wb") as said:
        process = build(folder, said, *on_cluster(nodes, folder / "remote"))
        started = time.monotonic()
        while b"started" not in log.read_bytes() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(after_s)
        assert process.poll() is None, f"the build was over before the kill:\n{log.read_text()}"
        killed = nodes.kill(index)
        wait(process, log)
    return Told(time.monotonic() - started, after_s, killed, log.read_text().count("started again"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    chance = random.Random(given.seed)
    folder = Path(tempfile.mkdtemp(prefix="cluster-storm-"))
    wanted, alone_s = build_quietly(folder / "alone")
    files = sum(len(cell) for cell in wanted.values())
    print(f"alone: {len(wanted)} cells, {files} files in {alone_s:.1f} s", flush=True)
    with Nodes(folder) as nodes:
        for number in range(1, given.times + 1):
            place = folder / f"time{number}"
            told = build_with_a_kill(nodes, place, chance.uniform(0.5, 0.6 * alone_s), chance.randrange(3))
            if built(place) != wanted:
                print(f"{number}: other bytes than alone, see {place}")
                return 1
            print(
                f"{number}: killed after {told.killed_after_s:.1f} s ({told.processes} processes), {told.moved} steps "
                f"moved, done in {told.seconds:.1f} s: same bytes",
                flush=True,
            )
            shutil.rmtree(place)
            nodes.start()
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
