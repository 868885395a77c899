"""Models of the sizes that people use, with random weights: libraries made anywhere, weights where they are run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

LLAMA: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 32_000, "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096, "rope_theta": 10_000.0, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {  # Touvron et al. 2023 (arXiv:2307.09288), table 1
    "7b": {
        **LLAMA, "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "70b": {
        **LLAMA, "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
}  # fmt: skip
CASES = (("7b", "q4f16_1", 1), ("7b", "q0f16", 1), ("7b", "q0f16", 2), ("70b", "q4f16_1", 2))  # shape, scheme, ranks
CONTEXT, CHUNK, MAX_BATCH = 4096, 2048, 4
BLOCK = 1 << 28  # bytes of random numbers that are written over and over
SMALL = 1 << 24  # of them that become small numbers
TARGET = {
    "kind": "cuda", "triple": "x86_64-linux-gnu", "cpu": "", "features": [], "arch": ["sm_90a"], "library": "so",
    "supports": [], "limits": dict.fromkeys(
        ("max_threads_per_block", "max_shared_memory_bytes", "max_binding_bytes", "max_storage_buffers"), 0
    ),
}  # fmt: skip


def lower(folder: Path, shape: str, scheme: str, ranks: int) -> None:
    """folder/library.so and metadata.json. Needs the compiler, and no GPU."""
    from dataclasses import asdict

    from llm_build import architectures
    from llm_build.steps import lower
    from tests.tvm.tiny import SCHEMES, FolderOut

    folder.mkdir(parents=True, exist_ok=True)
    config = architectures.load("llama").from_hf(SHAPES[shape])
    metadata = {
        "context_window_size": CONTEXT, "sliding_window_size": -1, "prefill_chunk_size": CHUNK,
        "attention_sink_size": 0, "max_batch_size": MAX_BATCH, "tensor_parallel_shards": ranks,
    }  # fmt: skip
    params = {
        "family": "llama", "architecture": asdict(config), "scheme": asdict(SCHEMES[scheme]), "target": TARGET,
        "metadata": metadata,
    }  # fmt: skip
    lower.run(params, {}, FolderOut(folder))


def write_weights(folder: Path) -> int:
    """Random weights for folder/metadata.json, in a file for what all ranks have and one for each rank, as the step
    ``cut`` writes them; the bytes written."""
    metadata = json.loads((folder / "metadata.json").read_text())
    ranks = metadata["tensor_parallel_shards"]
    whole = [parameter for parameter in metadata["params"] if not parameter["preprocs"]]
    cut = [parameter for parameter in metadata["params"] if parameter["preprocs"]]
    files = {"params_shard_0.bin": [(parameter["name"], parameter) for parameter in whole]}
    for rank in range(ranks if cut else 0):
        files[f"params_shard_0_rank_{rank}.bin"] = [(f"{each['name']}_shard-{rank}", each) for each in cut]
    shards = [write_shard(folder / name, content) for name, content in files.items()]
    (folder / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": shards}))
    return sum(shard["nbytes"] for shard in shards)


def write_shard(path: Path, content: list[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The shard's entry in tensor-cache.json."""
    records: list[dict[str, Any]] = []
    offset, noise = 0, np.random.default_rng(0).integers(0, 256, BLOCK, np.uint8)
    with path.open("wb") as file:
        for name, parameter in content:
            nbytes = math.prod(parameter["shape"]) * np.dtype(parameter["dtype"]).itemsize
            for piece in numbers(parameter, nbytes, noise):
                file.write(piece)
            records.append(
                {"name": name, "shape": parameter["shape"], "dtype": parameter["dtype"], "format": "raw"}
                | {"nbytes": nbytes, "byteOffset": offset}
            )
            offset += nbytes
        file.flush()
        os.fsync(file.fileno())
    return {"dataPath": path.name, "format": "raw-shard", "nbytes": offset, "records": records}


@lru_cache(maxsize=4)
def small_numbers(noise: bytes, dtype: str, most: float) -> np.ndarray:
    """Numbers up to half of ``most``, as bytes."""
    values = (np.frombuffer(noise, np.uint8).astype(np.float32) / 255 - 0.5) * most
    return values.astype(dtype).view(np.uint8)


def numbers(parameter: Mapping[str, Any], nbytes: int, noise: np.ndarray) -> Iterator[memoryview]:
    """Words as they come; norms are ones, weights and scales small enough that sums stay finite."""
    if parameter["dtype"] == "uint32":
        block = noise
    elif len(parameter["shape"]) == 1:
        block = np.ones(nbytes // 2, parameter["dtype"]).view(np.uint8)
    else:
        block = small_numbers(
            noise[:SMALL].tobytes(), parameter["dtype"], 0.002 if "scale" in parameter["name"] else 0.05
        )
    while nbytes > 0:
        part = block[: min(nbytes, block.size)]
        nbytes -= part.size
        yield memoryview(part)
