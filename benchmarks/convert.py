"""How fast weights go from a checkpoint to packed shards, beside the plain reading and writing of the same bytes.

    python benchmarks/convert.py [--quant q4f16_1,q8f16_1 | all] [--method rtn] [--shape 1.1b | 7b] [--jobs 2]
                                 [--rounds 3] [--work FOLDER]

The checkpoint is a float16 Llama with random weights, made once in --work: 1.1B parameters by transformers, or 7B
(13 GB) a few layers at a time. Each round builds it with the real engine in a new store: fetch (hashing), then convert
+ shard + quantize, with the page cache warm as far as memory allows. The floor reads the source and writes as many
bytes as the result has, in as many processes.

CPU seconds are those of the whole process tree, per GB of source; "idle cores" is the rate that --jobs cores with
nothing else to do would give if the disk kept up. Memory is the proportional set size (shared pages counted once) of
the process tree, sampled from /proc/*/smaps_rollup in a round of its own that is not timed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools" / "path")]

from llm_build.config import compose  # noqa: E402
from llm_build.config.choices import find_folders  # noqa: E402
from llm_build.core.events import Event, Finished  # noqa: E402
from llm_build.core.filestore import open_store  # noqa: E402
from llm_build.core.plan import Goal, Plan  # noqa: E402
from llm_build.core.run import run  # noqa: E402
from llm_build.core.step import Resources, Step  # noqa: E402
from llm_build.executors.local import LocalExecutor  # noqa: E402
from llm_build.planner import resolve  # noqa: E402
from llm_build.planner.graph import graph  # noqa: E402
from llm_build.planner.schemes.schemes import schemes_that_quantize  # noqa: E402

SHAPES = {
    "1.1b": {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_key_value_heads": 4},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_key_value_heads": 32},
}
SHARED = {
    "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
MAKE = """
import sys, json, torch, transformers
torch.manual_seed(0)
torch.set_default_dtype(torch.float16)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**json.loads(sys.argv[1])))
model.save_pretrained(sys.argv[2], max_shard_size="1GB")
"""
POOL_WEIGHTS = 1 << 24
SAMPLE_S = 0.05
CHUNK_BYTES = 1 << 20
MB = 1e6


def make_checkpoint(work: Path, shape: str) -> Path:
    folder, config = work / f"llama-{shape}-float16", {**SHARED, **SHAPES[shape]}
    if not (folder / "config.json").is_file():
        print("making the checkpoint (once)", file=sys.stderr)
        temporary = work / "making"
        shutil.rmtree(temporary, ignore_errors=True)
        if shape == "1.1b":
            subprocess.run([sys.executable, "-c", MAKE, json.dumps(config), str(temporary)], check=True)
        else:
            write_checkpoint(temporary, {"model_type": "llama", **config})
        temporary.rename(folder)
    return folder


def tensors(config: dict[str, object]) -> Iterator[dict[str, tuple[int, ...]]]:
    """The tensors of a Llama checkpoint, file by file."""
    hidden, inner, vocabulary = (int(str(config[k])) for k in ("hidden_size", "intermediate_size", "vocab_size"))
    ends = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    yield {**ends, "lm_head.weight": (vocabulary, hidden)}
    for layer in range(int(str(config["num_hidden_layers"]))):
        attention = {f"self_attn.{name}_proj": (hidden, hidden) for name in "qkvo"}
        up = {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
        norms = {"input_layernorm": (hidden,), "post_attention_layernorm": (hidden,)}
        table: dict[str, tuple[int, ...]] = {**attention, **up, **norms}
        yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in table.items()}


def write_checkpoint(folder: Path, config: dict[str, object]) -> None:
    """Random float16 weights; each file is the same long run of them, read from another place."""
    import numpy as np

    pool = (np.random.default_rng(0).standard_normal(POOL_WEIGHTS, np.float32) * 0.02).astype(np.float16).tobytes()
    folder.mkdir(parents=True)
    files = list(tensors(config))
    weight_map = {}
    for number, table in enumerate(files):
        name = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        weight_map.update(dict.fromkeys(table, name))
        header, end = {}, 0
        for tensor, shape in table.items():
            start, end = end, end + 2 * int(np.prod(shape))
            header[tensor] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            place = number * 2 * 4099 % len(pool)
            while end > 0:
                end -= out.write(pool[place : place + min(end, CHUNK_BYTES)])
                place = (place + CHUNK_BYTES) % len(pool)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-6, "architectures": []}))


def steps(folder: Path, quant: str, jobs: int, method: str) -> dict[str, Step]:
    """The steps that the weights go through, from the real planner, by name."""
    words = ["model=auto", f"model.source={folder}", f"quant={quant}", f"quant.method={method}"]
    recipe = resolve.resolve(compose.compose(words, None), find_folders())
    return {step.name: step for step in graph.build_plan([recipe]).steps.values()}


class Memory:
    """Peak of the proportional set size of this process and all below it, in bytes, while the block runs."""

    def __enter__(self) -> Memory:
        self.peak_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.peak_bytes = max(self.peak_bytes, sum(pss_bytes(process) for process in tree(os.getpid())))


def tree(root: int) -> list[int]:
    found = [root]
    for process in found:
        try:
            for task in os.listdir(f"/proc/{process}/task"):
                found += map(int, Path(f"/proc/{process}/task/{task}/children").read_text().split())
        except OSError:
            continue  # it ended
    return found


def pss_bytes(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


@dataclass(frozen=True)
class Round:
    fetch_s: float
    quantize_s: float
    cpu_s: float  # of convert + shard + quantize, user and system, coordinator and workers
    result_bytes: int


def cpu_seconds() -> float:
    """Of this process and of all its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def build(table: dict[str, Step], jobs: int, store_path: Path) -> Round:
    store = open_store(store_path)
    nbytes = 0

    def listen(event: Event) -> None:
        nonlocal nbytes
        if isinstance(event, Finished):
            if event.error:
                raise SystemExit(f"{event.name}: {event.error.message}")
            nbytes += event.nbytes if event.name.startswith("quantize[") else 0

    def timed(*names: str) -> tuple[float, float]:
        chosen = {table[name].id: table[name] for name in names}
        plan = Plan(chosen, (Goal("bench", tuple(chosen), ""),))
        started, used = time.perf_counter(), cpu_seconds()
        with LocalExecutor(store, Resources(cpu=jobs, memory_bytes=16 << 30)) as executor:
            run(plan, store, executor, listen)
        return time.perf_counter() - started, cpu_seconds() - used

    os.sync()  # what others left to write is not part of this
    fetch_s, _ = timed("fetch")
    quantize_s, cpu_s = timed("fetch", "convert", "shard", "quantize")
    return Round(fetch_s, quantize_s, cpu_s, nbytes)


def read_part(path: Path, start: int, stop: int) -> None:
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with path.open("rb", buffering=0) as source:
        while start < stop:
            start += os.preadv(source.fileno(), [buffer[: min(CHUNK_BYTES, stop - start)]], start)


def floor_part(files: list[Path], part: int, parts: int, target: Path, nbytes: int) -> None:
    for path in files:
        size = path.stat().st_size
        read_part(path, size * part // parts, size * (part + 1) // parts)
    zeros = bytes(CHUNK_BYTES)
    with target.open("wb", buffering=0) as out:
        while nbytes > 0:
            nbytes -= out.write(zeros[: min(nbytes, CHUNK_BYTES)])


def floor(files: list[Path], jobs: int, result_bytes: int, work: Path) -> float:
    """Seconds that the same bytes take without any arithmetic. Not synced, though the store syncs."""
    targets = [work / f"floor-{part}" for part in range(jobs)]
    processes = [
        multiprocessing.Process(target=floor_part, args=(files, part, jobs, target, result_bytes // jobs))
        for part, target in enumerate(targets)
    ]
    started = time.perf_counter()
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - started
    for target in targets:
        target.unlink()
    return seconds


def measure(folder: Path, quant: str, arguments: argparse.Namespace) -> None:
    """Build one scheme, a round for memory and --rounds for time, and print its line."""
    files = sorted(folder.glob("*.safetensors"))
    source_bytes = sum(path.stat().st_size for path in files)
    table = steps(folder, quant, arguments.jobs, arguments.method)
    rounds: list[Round] = []
    floors: list[float] = []
    for number in range(-1, arguments.rounds):
        store = arguments.work / f"store-{os.getpid()}-{number}"
        try:
            with Memory() if number < 0 else nullcontext() as watched:
                rounds.append(build(table, arguments.jobs, store))
        finally:
            shutil.rmtree(store, ignore_errors=True)
        if watched is not None:
            peak_bytes = watched.peak_bytes
        floors.append(floor(files, arguments.jobs, rounds[-1].result_bytes, arguments.work))
    timed = rounds[1:] or rounds
    fetch_s, quantize_s, cpu_s = (
        statistics.median(getattr(each, name) for each in timed) for name in ("fetch_s", "quantize_s", "cpu_s")
    )
    floor_s = statistics.median(floors)
    rate = source_bytes / MB
    print(
        f"{quant:15} {arguments.method:6} {rate:7.0f} {timed[0].result_bytes / MB:7.0f} {rate / fetch_s:7.0f} "
        f"{rate / quantize_s:8.0f} {quantize_s / floor_s:6.1f} {cpu_s / rate * 1e3:8.2f} "
        f"{rate / cpu_s * arguments.jobs:11.0f} {peak_bytes / MB:8.0f}",
        flush=True,
    )


TITLES = """\
                       source  result   fetch  quantize  times  CPU s of  MB/s of the  peak
scheme          method     MB      MB    MB/s     MB/s   floor  a GB      idle cores   MB PSS"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", default="q4f16_1", help="schemes of conf/quant, with commas between, or all")
    parser.add_argument("--method", default="rtn", choices=("rtn", "mse"), help="quant.method")
    parser.add_argument("--shape", default="1.1b", choices=tuple(SHAPES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "llm-build-benchmark")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = make_checkpoint(arguments.work, arguments.shape)
    for path in folder.glob("*.safetensors"):
        read_part(path, 0, path.stat().st_size)
    chosen = schemes_that_quantize(find_folders()) if arguments.quant == "all" else arguments.quant
    print(TITLES)
    for quant in chosen.split(",") if isinstance(chosen, str) else chosen:
        measure(folder, quant, arguments)


if __name__ == "__main__":
    main()
