"""kill -9 at a random moment of a build, then a plain build: the same bytes as from an undisturbed one.

python -m tests.e2e.test_kill 50     # more rounds than CI has time for, each from an empty store
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.conftest import Shell, bytes_of

NAME = "demo-q4f16_1-cpu"
BUILD_S = 9.0  # about as long as the build takes here; later kills hit its end


def killed_then_built(folder: Path, after_s: float) -> dict[str, bytes]:
    """The output of a build that follows one killed after ``after_s`` seconds."""
    (folder / "work").mkdir(parents=True)
    shell = Shell(folder / "work", folder / "store")
    command = [sys.executable, "-m", "llm_build", "build"]
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(command, cwd=shell.folder, env=shell.environment(), stdout=nowhere, stderr=nowhere)
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)
        process.wait()
    shell.run("build")
    return dict(bytes_of(shell.folder / "dist" / NAME))


@pytest.mark.parametrize("seed", range(4))
def test_killed_builds_leave_nothing_behind(demo: Shell, tmp_path: Path, seed: int):
    after_s = random.Random(seed).uniform(0, BUILD_S)
    assert killed_then_built(tmp_path, after_s) == dict(bytes_of(demo.folder / "dist" / NAME))


def main(rounds: int) -> None:
    moments = random.Random(rounds)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "quiet").mkdir()
        quiet = Shell(folder / "quiet", folder / "quiet-store")
        start = time.perf_counter()
        quiet.run("build")
        whole_s = time.perf_counter() - start
        good = dict(bytes_of(quiet.folder / "dist" / NAME))
        for number in range(rounds):
            after_s = moments.uniform(0, whole_s)
            same = killed_then_built(folder / "round", after_s) == good
            print(
                f"round {number + 1}: killed after {after_s:.2f} of {whole_s:.1f} s: {'same' if same else 'DIFFERS'}",
                flush=True,
            )
            assert same
            shutil.rmtree(folder / "round")


if __name__ == "__main__":
    main(int(sys.argv[1]))
