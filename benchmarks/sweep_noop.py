"""What a sweep costs that has nothing to do, beside Hydra alone on as many empty jobs, in the same run.

    python -m benchmarks.sweep_noop [--rounds 5] [--large 10x20x5]

36 cells, and a large sweep (1,000 cells) without a peer. The results are made up (synthetic.py), finding them
is not: plan, store, folders and the command are those of a build. Both are started as a user would start them,
alternating; medians of wall time and of CPU time (user and system, all processes).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import synthetic
from benchmarks.noop import APP, ROOT

EMPTY = """
defaults: [{model: m0}, {quant: q4f16_1}, {target: t0}, _self_]
hydra: {output_subdir: null}
"""


class Time(NamedTuple):
    wall_s: float
    cpu_s: float


def timed(command: Sequence[str], folder: Path, env: dict[str, str]) -> Time:
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - start, os.times()
    return Time(wall, sum(after[2:4]) - sum(before[2:4]))


def median(times: Sequence[Time]) -> Time:
    return Time(*(statistics.median(column) for column in zip(*times, strict=True)))


def sweep_in(folder: Path, models: int, quants: int, targets: int) -> tuple[list[str], dict[str, str]]:
    """A folder whose store has every cell of a sweep: the words of the sweep, and the environment of its command."""
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tools" / "path"), "LLM_BUILD_STORE": str(folder / "store")}
    words = synthetic.write_conf(folder, models, quants, targets)
    command = [sys.executable, "-m", "benchmarks.synthetic", *words]
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    return words, env


def empty_app(folder: Path, conf: Path) -> list[str]:
    """An app with the same groups that does nothing."""
    shutil.copytree(ROOT / "conf" / "quant", folder / "conf" / "quant")
    shutil.copytree(conf, folder / "conf", dirs_exist_ok=True)
    shutil.copy(ROOT / "conf" / "target" / "cpu.yaml", folder / "conf" / "target")
    (folder / "conf" / "build.yaml").write_text(EMPTY)
    (folder / "app.py").write_text(APP)
    return [sys.executable, "app.py", "-m"]


def show(name: str, time_: Time) -> None:
    print(f"{name:44}{time_.wall_s * 1000:8.0f} ms {time_.cpu_s * 1000:8.0f} ms of CPU", flush=True)


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--large", default="10x20x5", help="models x quants x targets")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work, app = Path(name) / "work", Path(name) / "app"
        words, env = sweep_in(work, 3, 4, 3)
        build, hydra = [sys.executable, "-m", "llm_build", "-m"], empty_app(app, work / "conf")
        pairs = [(timed([*build, *words], work, env), timed([*hydra, *words], app, env)) for _ in range(given.rounds)]
        ours, theirs = (median(column) for column in zip(*pairs, strict=True))
        show("36 cells with nothing to do", ours)
        show("36 empty jobs of a bare @hydra.main app", theirs)
        print(f"ratio {ours.wall_s / theirs.wall_s:.3f}, of CPU {ours.cpu_s / theirs.cpu_s:.3f}", flush=True)
        sizes = [int(number) for number in given.large.split("x")]
        large = Path(name) / "large"
        words, env = sweep_in(large, *sizes)
        times = [timed([*build, *words], large, env) for _ in range(given.rounds)]
        show(f"{given.large} = {sizes[0] * sizes[1] * sizes[2]} cells with nothing to do", median(times))


if __name__ == "__main__":
    main()
