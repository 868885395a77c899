"""Decode and prefill speed of a library on this CPU, beside what memory and torch allow.

    python -m benchmarks.decode                          # the demo's shape, q4f16_1, random weights
    python -m benchmarks.decode --shape 1b1              # 1.1B parameters
    python -m benchmarks.decode --artifact dist/demo-q4f16_1-cpu
    python -m benchmarks.decode --peer                   # also torch, float32, the same shape

Medians of several runs, measured as `build bench` does (builder/runtime/speed.py). The limit is the speed at which all
cores together read a buffer of the weights' size, measured in the same run: a token cannot come faster than its weights
and the cache of the tokens before it are read.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from llm_build.config.schema import Quant
from llm_build.planner.schemes import schemes
from llm_build.quant import storage
from llm_build.runtime import speed
from llm_build.runtime.engine import Engine
from llm_build.runtime.measured import active_experts
from llm_build.targets import cpu, host_machine

ROOT = Path(__file__).resolve().parent.parent
DEMO = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 3072, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "rope_scaling": None, "max_position_embeddings": 1024, "tie_word_embeddings": False, "attention_bias": False,
    "mlp_bias": False,
}  # fmt: skip
SHAPES = {
    "demo": DEMO,
    "1b1": {
        **DEMO, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 64, "vocab_size": 32000, "max_position_embeddings": 2048,
    },
}  # fmt: skip


class Out:
    """Where the lower step writes here."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.context, self.threads = folder, {}, os.cpu_count() or 1
        self.times: list[tuple[float, str]] = []

    def path(self, name: str) -> Path:
        return self.folder / name

    def fact(self, name: str, value: Any) -> None: ...

    def progress(self, done: int, total: int, unit: str = "", label: str = "") -> None:
        self.times.append((time.perf_counter(), label))

    def stages(self) -> Iterator[tuple[str, float]]:
        for (start, label), (stop, _) in zip(self.times, self.times[1:], strict=False):
            yield label, stop - start


def random_artifact(folder: Path, shape: str, scheme: str) -> Path:
    """A library of that shape and weights made up for it."""
    from llm_build.steps import lower

    architecture = SHAPES[shape]
    table = yaml.safe_load((ROOT / "conf" / "quant" / f"{scheme}.yaml").read_text())
    whole = schemes.scheme_of(Quant(**table))
    level, features = cpu.resolve(cpu.HOST)
    context = int(architecture["max_position_embeddings"])
    params = {
        "family": "llama", "architecture": architecture, "scheme": whole,
        "target": {"kind": "cpu", "triple": "x86_64-linux-gnu", "cpu": level, "features": list(features)},
        "metadata": {
            "context_window_size": context, "sliding_window_size": -1, "prefill_chunk_size": context,
            "attention_sink_size": 0, "max_batch_size": 4, "tensor_parallel_shards": 1,
        },
    }  # fmt: skip
    out, started = Out(folder), time.perf_counter()
    lower.run(params, {}, out)  # type: ignore[arg-type]
    seconds = time.perf_counter() - started
    slow = ", ".join(f"{label} {spent:.1f}" for label, spent in out.stages() if spent >= 0.1)
    print(f"lower: {seconds:.1f} s ({slow}); library {out.path('library.so').stat().st_size:,} bytes")
    random_weights(folder, json.loads((folder / "metadata.json").read_text())["params"])
    return folder


def random_weights(folder: Path, params: list[dict[str, Any]]) -> None:
    random, records, offset = np.random.default_rng(0), [], 0
    with (folder / "params_shard_0.bin").open("wb") as file:
        for parameter in params:
            shape, dtype = parameter["shape"], parameter["dtype"]
            if dtype == "uint32":
                data = random.integers(0, 1 << 32, shape, np.uint32) & np.uint32(0xBFBFBFBF)  # no 8-bit NaN
            elif dtype == "bfloat16":
                data = storage.narrow(0.02 * random.standard_normal(shape, np.float32), dtype)
            else:
                data = (0.02 * random.standard_normal(shape, np.float32)).astype(dtype)
            file.write(data.tobytes())
            records.append(
                {
                    "name": parameter["name"],
                    "shape": shape,
                    "dtype": dtype,
                    "format": "raw",
                    "nbytes": data.nbytes,
                    "byteOffset": offset,
                }
            )
            offset += data.nbytes
    shard = {"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": offset, "records": records}
    (folder / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": [shard]}))


def torch_speeds(shape: str, prompt: int, tokens: int, runs: int) -> tuple[float, float]:
    """(decode, prefill) tokens per second of transformers in float32 on the same shape."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = dict(SHAPES[shape])
    theta, _ = fields.pop("rope_theta"), fields.pop("rope_scaling")
    config = LlamaConfig(**fields, rope_parameters={"rope_type": "default", "rope_theta": theta})
    model, ids = LlamaForCausalLM(config).eval(), torch.randint(0, int(fields["vocab_size"]), (1, prompt))
    decodes, prefills = [], []
    with torch.no_grad():
        for _ in range(runs):
            started = time.perf_counter()
            cache = model(ids, use_cache=True).past_key_values
            prefills.append(prompt / (time.perf_counter() - started))
            one = ids[:, :1]
            decodes.append(
                tokens / speed.time_once(lambda c=cache, o=one: [model(o, past_key_values=c) for _ in range(tokens)])
            )
    return median(decodes), median(prefills)


def report(folder: Path, runs: int, shape: str, peer: bool) -> None:
    files = {item.name: item for item in folder.iterdir() if item.is_file()}
    engine, threads = Engine(files, 1), len(os.sched_getaffinity(0))
    read = speed.weights_read(files, engine.metadata, active_experts(files))
    bandwidth, big = speed.read_bandwidth(read, threads), speed.read_bandwidth(1 << 28, threads)
    print(f"{threads} threads of {host_machine.instructions()}")
    print(f"weights read per token: {read:,} bytes, at {bandwidth / 1e9:.1f} GB/s (256 MiB: {big / 1e9:.1f} GB/s)")
    for context in (8, 128, 512, engine.context - speed.MAX_TOKENS):
        if 0 < context <= engine.context - speed.MAX_TOKENS:
            found, limit = speed.decode_rate(engine, context, runs), bandwidth / (read + cache_of(engine, context))
            share = found["median"] / limit
            print(f"decode at context {context:5d}: {found['median']:9,.1f} tokens/s ({share:5.1%} of {limit:,.0f})")
    for length in (32, 256, engine.chunk):
        print(f"prefill of {length:5d} tokens: {speed.prefill_rate(engine, length, runs)['median']:9,.1f} tokens/s")
    if peer:
        decode, prefill = torch_speeds(shape, 256, speed.MAX_TOKENS, max(3, runs // 2))
        print(f"torch float32: decode at 256 {decode:,.1f} tokens/s, prefill of 256 {prefill:,.1f} tokens/s")


def cache_of(engine: Engine, context: int) -> int:
    return speed.cache_read(engine.metadata, context)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="a built model; else random weights of --shape")
    parser.add_argument("--shape", choices=SHAPES, default="demo")
    parser.add_argument("--scheme", default="q4f16_1", help="a scheme of conf/quant without rules")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--peer", action="store_true", help="also time torch on the same shape")
    given = parser.parse_args()
    if given.artifact:
        report(given.artifact, given.runs, given.shape, given.peer)
        return
    with tempfile.TemporaryDirectory() as folder:
        report(random_artifact(Path(folder), given.shape, given.scheme), given.runs, given.shape, given.peer)


if __name__ == "__main__":
    main()
