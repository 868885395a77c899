"""What a build costs that has nothing to do, beside an empty @hydra.main app with the same groups, in the same run.

    python benchmarks/noop.py [--rounds 15]

Both are started as a user would start them, alternating; medians of wall time, and the ratio.
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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
APP = """
import hydra

@hydra.main(config_path="conf", config_name="build", version_base="1.3")
def app(config):
    pass

app()
"""
EMPTY = """
defaults:
  - model: demo
  - quant: q4f16_1
  - target: cpu
  - verify: default
  - _self_
hydra:
  output_subdir: null
  run: {dir: .}
"""


def empty_app(folder: Path) -> list[str]:
    """An app that composes our groups and does nothing."""
    shutil.copytree(ROOT / "conf", folder / "conf")
    shutil.rmtree(folder / "conf" / "hydra")
    (folder / "conf" / "build.yaml").write_text(EMPTY)
    (folder / "app.py").write_text(APP)
    return [sys.executable, "app.py"]


def timed(command: list[str], folder: Path, env: dict[str, str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=15)
    rounds = options.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "LLM_BUILD_STORE": str(folder / "store")}
        app, work = folder / "app", folder / "work"
        work.mkdir()
        build, hydra = [sys.executable, "-m", "builder"], empty_app(app)
        print("first build ...", flush=True)
        print(f"  {timed(build, work, env):.1f} s")
        pairs = [(timed(build, work, env), timed(hydra, app, env)) for _ in range(rounds)]
        ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"build with nothing to do   {ours * 1000:6.0f} ms")
        print(f"empty @hydra.main app      {theirs * 1000:6.0f} ms")
        print(f"ratio                      {ours / theirs:6.2f}")


if __name__ == "__main__":
    main()
