"""How fast weights go from a checkpoint to packed shards, beside the plain reading and writing of the same bytes.

    python benchmarks/convert.py [--quant q4f16_1] [--jobs 2] [--rounds 3] [--work FOLDER]

The checkpoint is a 1.1B-parameter float16 Llama with random weights, made once by transformers in --work. Each round
builds it with the real engine in a new store: fetch (hashing), then convert + shard + quantize, with the page cache
warm. Memory is the proportional set size (shared pages counted once) of the whole process tree, sampled from
/proc/*/smaps_rollup. The floor reads the source and writes as many bytes as the result has, in as many processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from builder import architectures  # noqa: E402
from builder.core.events import Event, Finished  # noqa: E402
from builder.core.filestore import open_store  # noqa: E402
from builder.core.plan import Goal, Plan  # noqa: E402
from builder.core.run import run  # noqa: E402
from builder.core.step import Input, Resources, Step  # noqa: E402
from builder.executors.local import LocalExecutor  # noqa: E402
from builder.formats import checkpoint  # noqa: E402
from builder.quant.methods import METHODS  # noqa: E402

SHAPE = {
    "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip
MAKE = """
import sys, json, torch, transformers
torch.manual_seed(0)
torch.set_default_dtype(torch.float16)
model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**json.loads(sys.argv[1])))
model.save_pretrained(sys.argv[2], max_shard_size="1GB")
"""
SAMPLE_S = 0.05
CHUNK_BYTES = 1 << 20
MB = 1e6


def make_checkpoint(work: Path) -> Path:
    folder = work / "llama-1.1b-float16"
    if not (folder / "config.json").is_file():
        print("making the checkpoint (once)", file=sys.stderr)
        temporary = work / "making"
        shutil.rmtree(temporary, ignore_errors=True)
        subprocess.run([sys.executable, "-c", MAKE, json.dumps(SHAPE), str(temporary)], check=True)
        temporary.rename(folder)
    return folder


def scheme_table(name: str) -> dict[str, Any]:
    """A scheme of conf/quant, with the defaults of kind none filled in."""
    import yaml

    defaults: dict[str, Any] = {
        "bits": 0, "group_size": 0, "layout": "", "storage_dtype": "", "quantize_embedding": True, "quantize_head": True
    }  # fmt: skip
    return {**defaults, **yaml.safe_load((ROOT / "conf" / "quant" / f"{name}.yaml").read_text())}


def steps(folder: Path, scheme: dict[str, Any], jobs: int, method: str) -> dict[str, Step]:
    found = checkpoint.find(folder)
    config = json.loads((folder / "config.json").read_text())
    family = architectures.recognise(config)
    architecture = asdict(architectures.load(family).from_hf(config))
    fetch = Step(
        "fetch", "fetch", "builder.steps.fetch:run", {"format": found.format, "pin": None},
        watch={name: str(folder / name) for name in (*found.weights, *found.files)}, resources=Resources(cpu=jobs),
    )  # fmt: skip
    convert = Step(
        "convert", "convert", "builder.steps.convert:run", {"family": family, "architecture": architecture},
        {"layout": Input("fetch", "layout.json")}, code=(architectures.FAMILIES[family],),
    )  # fmt: skip
    shard = Step(
        "shard", "shard", "builder.steps.shard:run", {"scheme": scheme, "max_shard_bytes": 32 << 20, "moments": False},
        {"weight_map": Input("convert", "weight_map.json")},
    )  # fmt: skip
    quantize = Step(
        "quantize", "quantize", "builder.steps.quantize:run",
        {"allow_nonfinite": False, "method": {"name": method}},
        {"shards": Input("shard", "shards.json"), "tensors": Input("fetch", "tensor/*")}, expand="shards",
        tools=("numpy",), code=(METHODS[method],) if method in METHODS else (),
    )  # fmt: skip
    return {step.id: step for step in (fetch, convert, shard, quantize)}


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
    result_bytes: int
    peak_bytes: int


def build(folder: Path, scheme: dict[str, Any], jobs: int, method: str, store_path: Path) -> Round:
    table = steps(folder, scheme, jobs, method)
    store = open_store(store_path)
    nbytes = 0

    def listen(event: Event) -> None:
        nonlocal nbytes
        if isinstance(event, Finished):
            if event.error:
                raise SystemExit(f"{event.name}: {event.error.message}")
            nbytes += event.nbytes if event.name.startswith("quantize[") else 0

    def timed(*names: str) -> float:
        plan = Plan({name: table[name] for name in names}, (Goal("bench", names, ""),))
        started = time.perf_counter()
        with LocalExecutor(store, Resources(cpu=jobs, memory_bytes=16 << 30)) as executor:
            run(plan, store, executor, listen)
        return time.perf_counter() - started

    os.sync()  # what others left to write is not part of this
    with Memory() as memory:
        fetch_s = timed("fetch")
        quantize_s = timed("fetch", "convert", "shard", "quantize")
    return Round(fetch_s, quantize_s, nbytes, memory.peak_bytes)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", default="q4f16_1", help="a scheme of conf/quant")
    parser.add_argument("--method", default="rtn", choices=("rtn", "mse"), help="quant.method")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "llm-build-benchmark")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    folder = make_checkpoint(arguments.work)
    files = sorted(folder.glob("*.safetensors"))
    source_bytes = sum(path.stat().st_size for path in files)
    for path in files:
        read_part(path, 0, path.stat().st_size)
    rounds: list[Round] = []
    floors: list[float] = []
    for number in range(arguments.rounds):
        store = arguments.work / f"store-{os.getpid()}-{number}"
        try:
            rounds.append(build(folder, scheme_table(arguments.quant), arguments.jobs, arguments.method, store))
        finally:
            shutil.rmtree(store, ignore_errors=True)
        floors.append(floor(files, arguments.jobs, rounds[-1].result_bytes, arguments.work))
    report(arguments.quant, source_bytes, rounds, floors)


def report(quant: str, source_bytes: int, rounds: list[Round], floors: list[float]) -> None:
    fetch_s = statistics.median(each.fetch_s for each in rounds)
    quantize_s = statistics.median(each.quantize_s for each in rounds)
    floor_s = statistics.median(floors)
    result_bytes = rounds[0].result_bytes
    print(f"{quant}: {source_bytes / MB:.0f} MB of source -> {result_bytes / MB:.0f} MB; median of {len(rounds)}")
    print(f"  fetch (hashing)            {fetch_s:6.2f} s  {source_bytes / fetch_s / MB:6.0f} MB/s")
    print(f"  convert + shard + quantize {quantize_s:6.2f} s  {source_bytes / quantize_s / MB:6.0f} MB/s")
    print(f"  floor (read + write)       {floor_s:6.2f} s  {source_bytes / floor_s / MB:6.0f} MB/s")
    print(f"  ratio to the floor         {quantize_s / floor_s:6.2f}")
    print(f"  peak memory of the tree    {max(each.peak_bytes for each in rounds) / MB:6.0f} MB (PSS)")


if __name__ == "__main__":
    main()
