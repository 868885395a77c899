"""What a user types on a machine with two GPUs: ``python -m tools.gpu.commands FOLDER``.

The demo's text on one GPU, on two, and on two with NCCL alone is the same. A generation whose rank is killed ends with
that rank's name and exit code 1, Ctrl-C with 130, and both leave no process. Needs all that a build needs, a compiler
for CUDA and some minutes, most of which verify takes with a Llama of 2 GB (random weights, made here).

Two NVIDIA H200, 2026-11-23: texts equal, 0.4 s from the kill to the end, 0.3 s from Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from llm_build.runtime.peers import SWITCH
from tests.matrix.checkpoints import make
from tools.gpu.cells import PROMPT

CUDA = ("target=cuda", "target.arch=[host]")
SIZES = {  # 22 layers, whose tokens take long enough to be interrupted
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "max_position_embeddings": 4096,
}  # fmt: skip
END_S = 10.0


def texts(folder: Path) -> None:
    words = ("generate", PROMPT, "--temperature", "0", *CUDA)
    found = {}
    for name, gpus, peers in (("one", 1, "1"), ("two", 2, "1"), ("two, NCCL alone", 2, "0")):
        environment = {**os.environ, SWITCH: peers}
        found[name] = subprocess.run(
            build(folder, *words, f"target.gpus={gpus}"), env=environment, cwd=folder, text=True, check=True,
            stdout=subprocess.PIPE,
        ).stdout  # fmt: skip
        print(f"{name}: {found[name]!r}", flush=True)
    assert found["one"].startswith(PROMPT)
    assert len(set(found.values())) == 1


def ended(folder: Path, words: tuple[str, ...], end: Callable[[int], None], code: int, message: str) -> None:
    """Begin to generate, ``end`` it by the number of its process, and see how it ends and what it leaves."""
    command = build(folder, "generate", PROMPT, *words, "--max-tokens", "3000")
    with subprocess.Popen(
        command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout
        assert process.stdout.read(100)
        started = time.monotonic()
        end(process.pid)
        _, said = process.communicate(timeout=60)
    seconds = time.monotonic() - started
    print(
        f"{end.__name__}: exit {process.returncode} after {seconds:.2f} s: {said.strip().splitlines()[-1]}", flush=True
    )
    assert process.returncode == code
    assert message in said
    assert seconds < END_S
    assert not ranks()


def kill_a_rank(_command: int) -> None:
    os.kill(next(pid for pid, number in ranks().items() if number == "1"), signal.SIGKILL)


def ctrl_c(command: int) -> None:
    os.killpg(command, signal.SIGINT)


def ranks() -> dict[int, str]:
    """The ranks' processes on this machine: their numbers as ranks."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        if "llm_build.runtime.rank" in words:
            found[int(path.parent.name)] = words[words.index("llm_build.runtime.rank") + 1]
    return found


def build(folder: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "llm_build", *words, f"store.path={folder / 'store'}"]


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    texts(folder)
    words = (
        "model=auto",
        f"model.source={make('llama', folder / 'llama', **SIZES)}",
        "quant=q0f16",
        *CUDA,
        "target.gpus=2",
    )
    subprocess.run(build(folder, *words, "verify.tokens=64"), cwd=folder, check=True)
    ended(folder, (*words, "verify.tokens=64"), kill_a_rank, 1, "rank 1 of 2 was killed by SIGKILL")
    ended(folder, (*words, "verify.tokens=64"), ctrl_c, 130, "interrupted")


if __name__ == "__main__":
    main()
