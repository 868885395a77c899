"""Several GPUs: the demo's text, the speed of a 7B shape, and a 70B shape.

    python -m tools.gpu.ranks prepare FOLDER    # on any machine: libraries, and the demo's cells
    python -m tools.gpu.ranks check FOLDER      # on one with two GPUs; FOLDER/ranks.json gets what was found

``check`` makes the weights of the large shapes itself (FOLDER/large, about 80 GB), and needs TVM's runtime, NCCL, numpy
and tokenizers.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from threading import Timer
from typing import Any

import numpy as np

from llm_build.core.errors import StepError
from llm_build.runtime import ranks
from llm_build.runtime.engine import Engine
from llm_build.runtime.generate import generate
from tools.gpu import shapes
from tools.gpu.cells import GREEDY_TOKENS, PROMPT

DEMO = ("llama-q4f16_1", "gpt_neox-q0f16", "olmo2-q0f16", "mixtral-q0f16")
CONTEXTS = (128, 512, 2000)
STEPS = 70
TOKENS, RUNS = 64, 5
CLOSE = 1e-3  # of the spread: float32 sums in another order, through 32 layers


def prepare(folder: Path) -> None:
    from tools.gpu.prepare import prepare as prepare_cells

    for shape, scheme, count in shapes.CASES:
        shapes.lower(folder / "large" / f"{shape}-{scheme}-{count}", shape, scheme, count)
        print(shape, scheme, count, "lowered", flush=True)
    prepare_cells(folder / "demo-1", list(DEMO[:1]), "h100", 128, 1)
    prepare_cells(folder / "demo-2", list(DEMO), "h100", 128, 2)


def demo(folder: Path) -> dict[str, Any]:
    """Every cell through verify on two GPUs, its tokens beside the CPU's; the demo's text beside one GPU's."""
    from tools.gpu.check import compared

    found = {}
    for cell in sorted(path.name for path in (folder / "demo-2").iterdir()):
        texts = []
        for gpus in (1, 2):
            if not (place := folder / f"demo-{gpus}" / cell).exists():
                continue
            engine, figures = compared(place, "kind", "cuda")
            found[f"{cell} on {gpus}"] = {key: figures[key] for key in ("exact_error", "max_error", "kl", "same")}
            texts.append(
                "".join(generate(engine, place / "artifact" / "tokenizer.json", PROMPT, GREEDY_TOKENS, 0.0, 1.0, 0))
            )
        found[f"{cell} text"] = {"equal": texts[0] == texts[-1], "text": texts[-1]}
        assert texts[0] == texts[-1], texts
    return found


def large(folder: Path) -> dict[str, Any]:
    """Load time and speed of one shape; its weights are made where they are not there yet."""
    if (one_gpu(folder) / "tensor-cache.json").exists() and one_gpu(folder) != folder:
        for path in (*one_gpu(folder).glob("*.bin"), one_gpu(folder) / "tensor-cache.json"):
            (folder / path.name).unlink(missing_ok=True)
            os.link(path, folder / path.name)
    elif not (folder / "tensor-cache.json").exists():
        started = time.perf_counter()
        nbytes = shapes.write_weights(folder)
        print(f"{folder.name}: {nbytes / 1e9:.1f} GB written in {time.perf_counter() - started:.0f} s", flush=True)
    forget_pages()
    started = time.perf_counter()
    read = sum(read_file(path) for path in folder.glob("*.bin"))
    disk = read / (time.perf_counter() - started)
    forget_pages()
    started = time.perf_counter()
    engine = Engine.from_folder(folder, 1)
    loaded = time.perf_counter() - started
    found = {
        "bytes": read, "load_s": loaded, "load_bytes_per_s": read / loaded, "disk_bytes_per_s": disk, **speeds(engine)
    }  # fmt: skip
    found["gpu_memory"] = said("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader")
    found["steps_from_one_pass"] = steps_from_one_pass(engine)
    found["from_one_gpu"] = compared_with_one(folder, engine)
    found["killed_s"] = killed(engine)
    return found


def steps_from_one_pass(engine: Engine) -> float:
    """The largest difference of logits token by token, over several pages of the cache, from those of one pass."""
    sequence, ids = engine.add_sequence(), [int(each) for each in np.random.default_rng(0).integers(0, 1000, STEPS)]
    engine.prefill(sequence, list(range(100, 150)))
    steps = np.stack([engine.decode(sequence, token) for token in ids])
    engine.rewind(sequence, STEPS)
    whole = engine.logits(sequence, ids)
    engine.remove_sequence(sequence)
    difference = float(np.abs(steps - whole).max() / whole.std())
    assert difference < CLOSE, difference
    return difference


def compared_with_one(folder: Path, engine: Engine) -> float | None:
    """The largest difference from one GPU's logits of the same weights, in units of their spread."""
    sequence = engine.add_sequence()
    logits = np.stack([engine.prefill(sequence, list(range(100, 164))), engine.decode(sequence, 7)])
    engine.remove_sequence(sequence)
    np.save(folder / "logits.npy", logits)
    other = one_gpu(folder) / "logits.npy"
    if engine.metadata["tensor_parallel_shards"] == 1 or not other.exists():
        return None
    expected = np.load(other)
    difference = float(np.abs(logits - expected).max() / expected.std())
    assert difference < CLOSE, difference
    return difference


def killed(engine: Engine) -> float | None:
    """Seconds from the death of the last rank in the middle of a generation to the error, when no rank is left."""
    group, sequence, times = engine._model, engine.add_sequence(), list[float]()
    if not isinstance(group, ranks.RankedModel):
        return None
    engine.prefill(sequence, [1] * 64)

    def kill() -> None:
        times.append(time.perf_counter())
        os.kill(group.pids[-1], signal.SIGKILL)

    Timer(0.3, kill).start()
    message = ""
    while not message:
        try:
            engine.decode(sequence, 1)
        except StepError as error:
            message = error.message
    seconds = time.perf_counter() - times[0]
    assert f"rank {len(group.pids) - 1} of {len(group.pids)} was killed by SIGKILL" in message, message
    assert not any(Path(f"/proc/{pid}").exists() for pid in group.pids)
    assert seconds < 10
    return seconds


def one_gpu(folder: Path) -> Path:
    return folder.with_name(folder.name.rpartition("-")[0] + "-1")


def speeds(engine: Engine) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sequence = engine.add_sequence()
    engine.prefill(sequence, [1] * 64)
    for context in CONTEXTS:
        engine.rewind(sequence, engine.length(sequence))
        found[f"prefill_{context}"] = context / timed(partial(engine.prefill, sequence, [7] * context))
        repeat = [decoded(engine, sequence) for _ in range(RUNS)]
        found[f"decode_{context}"] = {"median": median(repeat), "low": min(repeat), "high": max(repeat)}
    engine.remove_sequence(sequence)
    return found


def decoded(engine: Engine, sequence: int) -> float:
    """Tokens per second."""
    engine.decode(sequence, 1)
    seconds = timed(lambda: [engine.decode(sequence, 1) for _ in range(TOKENS)])
    engine.rewind(sequence, TOKENS + 1)
    return TOKENS / seconds


def timed(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def forget_pages() -> None:
    """What was written is read from the disk again, where this may be asked for."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError as error:
        print("pages are not forgotten:", error, flush=True)


def read_file(path: Path) -> int:
    size, room = 0, bytearray(1 << 24)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(room):
            size += count
    return size


def said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def check(folder: Path, only: list[str]) -> int:
    """Each part in a process of its own: one that fails does not hide the others, nor leave anything on a GPU."""
    names = [f"{shape}-{scheme}-{count}" for shape, scheme, count in shapes.CASES]
    parts: dict[str, Callable[[], Any]] = {name: partial(large, folder / "large" / name) for name in names}
    parts["demo"] = partial(demo, folder)
    if len(only) != 1:
        command = (sys.executable, "-m", __spec__.name, "check", str(folder), "--only")
        return max(subprocess.run((*command, name), check=False).returncode for name in only or parts)
    record, name = folder / "ranks.json", only[0]
    found: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    found["gpus"] = said("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    found["links"] = said("nvidia-smi", "topo", "-m")
    try:
        found[name] = parts[name]()
    except Exception as error:
        traceback.print_exc()
        found[name] = {"failed": str(error)[-2000:]}
    print(name, json.dumps(found[name]), flush=True)
    record.write_text(json.dumps(found, indent=1) + "\n")
    return int("failed" in found[name])


def main() -> int:
    options = argparse.ArgumentParser()
    options.add_argument("what", choices=("prepare", "check"))
    options.add_argument("folder", type=Path)
    options.add_argument("--only", default="")
    given = options.parse_args()
    if given.what == "check":
        ranks.ANSWER_S = ranks.MEET_S = 90.0  # a hang shows early
        return check(given.folder.absolute(), [name for name in given.only.split(",") if name])
    prepare(given.folder.absolute())
    return 0


if __name__ == "__main__":
    sys.exit(main())
