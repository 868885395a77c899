"""One artifact, loaded and timed in a process of its own: python -m llm_build.runtime.measured

The request comes as JSON on standard input: {"files": {name: path}, "prompt": tokens, "contexts": [tokens]}. Lines of
JSON go out: {"done", "total", "label"} while it works, at last {"result"} or {"error", "hint"}.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_build.core.errors import BuildError
from llm_build.formats.artifact_config import NAME, read_chat_config
from llm_build.runtime.process_memory import process_memory

if TYPE_CHECKING:
    from llm_build.runtime.engine import Engine

_FILL_S = 60.0  # a context that takes longer to fill is left out
Tick = Callable[[str], None]
Json = Any


def measure(files: Mapping[str, Path], prompt: int, contexts: Sequence[int], tick: Tick) -> Json:
    """Everything that `build bench` reports of an artifact; see docs/guides/bench.md for the fields.

    Call it first thing in a process: what is loaded before is not counted. ``tick``: gets the name of each stage.
    """
    busy, before, started = os.getloadavg()[0], _device_memory_used(), time.perf_counter()
    tick("load")
    from llm_build.runtime import speed
    from llm_build.runtime.device import device_of
    from llm_build.runtime.engine import Engine, find_library

    engine = Engine(files, 1)
    loaded = time.perf_counter() - started
    prompt = min(prompt, engine.chunk, engine.context - 1)
    sequence = engine.add_sequence()
    engine.prefill(sequence, speed.some_tokens(engine, prompt))
    first = time.perf_counter() - started
    engine.remove_sequence(sequence)
    tick("prefill")
    prefill = speed.prefill_rate(engine, prompt)
    decode, left_out = _decode_rates(engine, contexts, prefill["median"], tick)
    device = device_of(find_library(files))
    on_cpu = device.kind == "cpu"
    memory: Json = {**process_memory(), "device_bytes": None if on_cpu else _used_since(before)}
    if of_ranks := engine.memory_of_ranks():
        memory["ranks"] = of_ranks
    tick("memory bandwidth")
    readers = max(len(of_ranks), 1) if on_cpu else 1  # of one memory: a GPU has its own
    weights = readers * speed.weights_read(files, engine.metadata, active_experts(files))
    threads = int(os.environ["TVM_NUM_THREADS"])
    bandwidth = speed.read_bandwidth(weights, threads) if on_cpu else speed.device_bandwidth(device)
    for row in decode:
        read = weights + readers * speed.cache_read(engine.metadata, row["context"])
        row |= {"bytes_read": read, "limit": bandwidth / read}
        row["share_of_limit"] = row["tokens_per_s"]["median"] / row["limit"]
    return {
        "load_s": loaded,
        "first_token": {"tokens": prompt, "cold_s": first, "warm_s": prompt / prefill["median"]},
        "prefill": {"tokens": prompt, "tokens_per_s": prefill},
        "decode": decode,
        "left_out": left_out,
        "bandwidth_bytes_per_s": bandwidth,
        "weights_read_bytes": weights,
        "memory": memory,
        "load_average": busy,
    }


def _decode_rates(
    engine: Engine, contexts: Sequence[int], prefill_rate: float, tick: Tick
) -> tuple[list[Json], list[Json]]:
    """(rates, contexts that are left out and why). The last context is as near the end as there is room for a run."""
    from llm_build.runtime import speed

    last = engine.context - speed.MAX_TOKENS
    rates, left_out = [], []
    for context in sorted({each for each in (*contexts, last) if each > 0}):
        tick(f"decode at {context}")
        if context > last:
            left_out.append({"context": context, "why": f"the library's context is {engine.context} tokens"})
        elif context / prefill_rate > _FILL_S:
            left_out.append({"context": context, "why": f"it takes {context / prefill_rate:.0f} s to fill"})
        else:
            rates.append({"context": context, "tokens_per_s": speed.decode_rate(engine, context)})
    return rates, left_out


def active_experts(files: Mapping[str, Path]) -> float:
    """The share of its experts that a token goes to; 1 for a model without any."""
    if NAME not in files:
        return 1.0
    config = read_chat_config(files[NAME])["model_config"]
    experts = config.get("num_local_experts") or config.get("num_experts")
    return float((config.get("num_experts_per_tok") or experts) / experts) if experts else 1.0


def _device_memory_used() -> int | None:
    """Bytes in use on the first NVIDIA GPU, by all processes."""
    if not Path("/dev/nvidiactl").exists():
        return None
    command = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        used = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return int(used) << 20
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def _used_since(before: int | None) -> int | None:
    now = _device_memory_used()
    return None if before is None or now is None else now - before


def main() -> None:
    request = json.load(sys.stdin)
    contexts, stage = request["contexts"], 0

    def tick(label: str) -> None:
        nonlocal stage
        _send({"done": stage, "total": 4 + len(contexts), "label": label})
        stage += 1

    try:
        files = {name: Path(path) for name, path in request["files"].items()}
        _send({"result": measure(files, request["prompt"], contexts, tick)})
    except BuildError as error:
        _send({"error": error.message, "hint": error.hint})


def _send(message: Json) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main()
