"""What a build costs that has nothing to do, beside others that have nothing to do, in the same run.

    python -m benchmarks.noop [--rounds 15] [--steps 100 1000 10000] [--peers FOLDER/bin]
        [--cpu] [--without-app]

First `build` beside an empty @hydra.main app with the same groups. Then a plan of N steps through the core beside
ninja, doit and Snakemake on the same graph (`pip install doit snakemake ninja`, in any environment: --peers is where
their programs are). All are started as a user would start them, alternating; medians for the first, the best of the
rounds for the second. Wall time, or CPU time (--cpu) where the machine has other things to do.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import noop_graph

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
# A peer: how its files are written, its command to make all, whether it makes them itself, from how many steps on it is
# run a single time (Snakemake takes half a minute there).
PEERS = {
    "ninja": (noop_graph.ninja, ["ninja", "--quiet"], True, 10**9),
    "doit": (noop_graph.doit, ["doit", "-v0"], True, 10**9),
    "snakemake": (noop_graph.snakemake, ["snakemake", "--cores", "1", "--quiet"], False, 5000),
}


def empty_app(folder: Path) -> list[str]:
    """An app that composes our groups and does nothing."""
    shutil.copytree(ROOT / "conf", folder / "conf")
    shutil.rmtree(folder / "conf" / "hydra")
    (folder / "conf" / "build.yaml").write_text(EMPTY)
    (folder / "app.py").write_text(APP)
    return [sys.executable, "app.py"]


def timed(command: list[str], folder: Path, env: dict[str, str]) -> float:
    """Seconds, of the clock ``env`` names."""
    clock = cpu_s if env["CLOCK"] == "cpu" else time.perf_counter
    start = clock()
    done = subprocess.run(command, cwd=folder, env=env, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-500:]}{done.stderr[-2000:]}"
    return clock() - start


def cpu_s() -> float:
    """Seconds of processor that finished children took."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def beside_hydra(rounds: int, folder: Path, env: dict[str, str]) -> None:
    app, work = folder / "app", folder / "work"
    work.mkdir()
    build, hydra = [sys.executable, "-m", "llm_build"], empty_app(app)
    print("first build ...", flush=True)
    print(f"  {timed(build, work, env):.1f} s")
    pairs = [(timed(build, work, env), timed(hydra, app, env)) for _ in range(rounds)]
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"build with nothing to do   {ours * 1000:6.0f} ms")
    print(f"empty @hydra.main app      {theirs * 1000:6.0f} ms")
    print(f"ratio                      {ours / theirs:6.2f}")


def beside_peers(steps: int, rounds: int, folder: Path, env: dict[str, str]) -> dict[str, float]:
    """{program: seconds of the whole command that finds ``steps`` steps up to date}, of those that are installed."""
    noop_graph.fill(steps, folder / "store")
    commands = {"build": [sys.executable, "-m", "benchmarks.noop_graph", str(steps), str(folder / "store")]}
    found: dict[str, list[float]] = {"build": []}
    graph = noop_graph.graph(steps)
    for name, (write, command, makes, once_from) in PEERS.items():
        (folder / name).mkdir()
        if not shutil.which(name, path=env["PATH"]):
            continue
        write(graph, folder / name)
        if makes:
            timed(command, folder / name, env)
        found[name] = [timed(command, folder / name, env)]
        if steps < once_from:
            commands[name] = command
    for _ in range(rounds):
        for name, command in commands.items():
            where = ROOT if name == "build" else folder / name
            found[name].append(timed(command, where, env))
    return {name: min(times) for name, times in found.items()}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--steps", type=int, nargs="*", default=[100, 1000, 10_000])
    options.add_argument("--peers", type=Path, default=Path(sys.executable).parent)
    options.add_argument("--cpu", action="store_true")
    options.add_argument("--without-app", action="store_true", help="only the second part")
    given = options.parse_args()
    env = {
        "CLOCK": "cpu" if given.cpu else "wall",
        **os.environ,
        "PYTHONPATH": str(ROOT / "tools" / "path"),
        "PATH": os.pathsep.join([str(given.peers.absolute()), os.environ["PATH"]]),
    }
    if not given.without_app:
        with tempfile.TemporaryDirectory() as name:
            beside_hydra(given.rounds, Path(name), {**env, "LLM_BUILD_STORE": f"{name}/store"})
    print(f"\n{'steps':>7}" + "".join(f"{name:>24}" for name in ("build", *PEERS)))
    for steps in given.steps:
        with tempfile.TemporaryDirectory() as name:
            found = beside_peers(steps, min(given.rounds, 5), Path(name), env)
        cells = [
            f"{found[name] * 1000:9.0f} ms {found[name] * 1000 / steps:7.3f}/step" if name in found else "not installed"
            for name in ("build", *PEERS)
        ]
        print(f"{steps:>7}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
