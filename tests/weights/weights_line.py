"""Steps of the weights path run one after the other in this process, into a folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from llm_build.core.memo import Memo
from llm_build.core.step_io import File
from llm_build.formats import checkpoint, safetensors
from llm_build.quant.layout import Scheme
from llm_build.quant.storage import NUMPY_DTYPE
from llm_build.steps import convert, fetch, package, quantize, shard

NUMPY = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "BF16": np.uint16}
METADATA = {
    "context_window_size": 64,
    "sliding_window_size": -1,
    "prefill_chunk_size": 32,
    "attention_sink_size": 0,
    "max_batch_size": 2,
    "tensor_parallel_shards": 1,
}


@dataclass
class FolderOut:
    """An Out that keeps what it was told."""

    folder: Path
    watch: Mapping[str, File] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 2
    files: dict[str, File] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    steps: list[tuple[int, int]] = field(default_factory=list)

    @cached_property
    def memo(self) -> Memo:
        return Memo(self.folder.parents[1] / "memo.log")  # that of every run below one folder

    def path(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.written.add(name)
        return path

    def link(self, name: str, source: File) -> None:
        self.files[name] = source

    def slice(self, name: str, digest: str, nbytes: int, of: str, offset: int) -> None:
        kind, origin = of.split(":", 1)
        path = self.watch[origin].path if kind == "watch" else self.folder / origin
        self.files[name] = File(path, digest, nbytes, offset)

    def fact(self, name: str, value: Any) -> None:
        self.facts[name] = value

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def progress(self, done: int, total: int, unit: str = "", label: str = "") -> None:
        self.steps.append((done, total))

    def outputs(self, prefix: str = "") -> dict[str, File]:
        blobs = {name: File(self.folder / name, "", (self.folder / name).stat().st_size) for name in self.written}
        return {name: file for name, file in sorted({**blobs, **self.files}.items()) if name.startswith(prefix)}

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_bytes())


@dataclass
class Built:
    """What each step left."""

    fetch: FolderOut
    convert: FolderOut
    shard: FolderOut
    quantize: list[FolderOut]
    package: FolderOut | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """The stored tensors by name, read from the shard files as tensor-cache.json describes them."""
        found = {}
        for item in self.quantize:
            shard_entry = item.json("records.json")
            data = (item.folder / shard_entry["dataPath"]).read_bytes()
            assert len(data) == shard_entry["nbytes"]
            for record in shard_entry["records"]:
                part = data[record["byteOffset"] : record["byteOffset"] + record["nbytes"]]
                found[record["name"]] = np.frombuffer(part, NUMPY_DTYPE[record["dtype"]]).reshape(record["shape"])
        return found


def run_fetch(folder: Path, work: Path, threads: int = 2) -> FolderOut:
    found = checkpoint.find(folder)
    watch = {name: File(folder / name, "", (folder / name).stat().st_size) for name in (*found.weights, *found.files)}
    out = FolderOut(work / "fetch", watch, threads=threads)
    fetch.run({"format": found.format, "pin": None}, {"watch": watch}, out)
    return out


def run_weights(
    folder: Path, work: Path, architecture: dict[str, Any], scheme: dict[str, Any], *, family: str = "llama",
    max_shard_bytes: int = 32 << 20, allow_nonfinite: bool = False, method: str = "rtn",
    packing: Mapping[str, Any] | None = None,
) -> Built:  # fmt: skip
    """fetch, convert, shard and every quantize item."""
    fetched = run_fetch(folder, work)
    converted = FolderOut(work / "convert")
    quantized = {"packing": packing} if packing else {}
    convert.run(
        {"family": family, "architecture": architecture, **quantized},
        {"layout": fetched.outputs()["layout.json"]},
        converted,
    )
    sharded = FolderOut(work / "shard")
    shard.run(
        {"scheme": scheme, "max_shard_bytes": max_shard_bytes, "moments": False, "scales": False},
        {"weight_map": converted.outputs()["weight_map.json"]},
        sharded,
    )
    items = []
    for item in sharded.json("shards.json")["items"]:
        out = FolderOut(work / f"quantize-{item['name']}")
        ports = {port: fetched.files[output] for port, (_, output) in item["inputs"].items()}
        params = {"allow_nonfinite": allow_nonfinite, "method": {"name": method}, **item["params"]}
        quantize.run(params, ports, out)
        items.append(out)
    return Built(fetched, converted, sharded, items)


def run_package(built: Built, work: Path, architecture: dict[str, Any], scheme: dict[str, Any]) -> FolderOut:
    library = work / "library.so"
    library.write_bytes(b"a library")
    out = FolderOut(work / "package")
    shards = {
        f"{index}/{name}": file for index, item in enumerate(built.quantize) for name, file in item.outputs().items()
    }
    inputs = {
        "shards": shards,
        "library": File(library, "", library.stat().st_size),
        "files": built.fetch.outputs("file/"),
        "parameters": built.shard.outputs()["parameters.json"],
    }
    params = {
        "name": "tiny", "library": "tiny.so", "family": "llama", "architecture": architecture, "scheme": scheme,
        "quantization": scheme["name"], "method": "rtn",
        "metadata": METADATA, "conv_template": None,
    }  # fmt: skip
    package.run(params, inputs, out)
    built.package = out
    return out


def group_scheme(name: str, bits: int = 4, group_size: int = 32, dtype: str = "float16", **changes: Any) -> Scheme:
    return Scheme(**{
        "name": name, "kind": "group", "bits": bits, "group_size": group_size, "layout": "NK", "dtype": dtype,
        "storage_dtype": "uint32", "quantize_embedding": True, "quantize_head": True, **changes,
    })  # fmt: skip


def plain_scheme(name: str, dtype: str) -> Scheme:
    return Scheme(name, "none", 0, 0, "", dtype, "", True, True)


def write_tensors(path: Path, tensors: Mapping[str, tuple[str, np.ndarray]]) -> None:
    """A safetensors file of {name: (dtype, array)}; BF16 arrays hold bits as uint16."""
    with path.open("wb") as file:
        safetensors.write_header(file, [(name, dtype, array.shape) for name, (dtype, array) in tensors.items()])
        for _, array in tensors.values():
            file.write(array.tobytes())


ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 96, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 64, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
}  # fmt: skip


def hf_config(**changes: Any) -> dict[str, Any]:
    """config.json of the architecture above, as transformers 4 writes it."""
    keys = {key: value for key, value in ARCHITECTURE.items() if key != "head_dim"}
    return {"model_type": "llama", "hidden_act": "silu", "torch_dtype": "float16", **keys, **changes}


def source_tensors(dtype: str = "F16", seed: int = 0) -> dict[str, tuple[str, np.ndarray]]:
    """Random weights of the architecture above, by their checkpoint names."""
    rng = np.random.default_rng(seed)

    def make(*shape: int) -> tuple[str, np.ndarray]:
        values = (rng.standard_normal(shape) * 0.05).astype(np.float32)
        if dtype == "BF16":
            return dtype, (values.view(np.uint32) >> 16).astype(np.uint16)
        return dtype, values.astype(NUMPY[dtype])

    tensors = {"model.embed_tokens.weight": make(96, 64), "model.norm.weight": make(64), "lm_head.weight": make(96, 64)}
    for layer in ("model.layers.0", "model.layers.1"):
        tensors |= {
            f"{layer}.input_layernorm.weight": make(64),
            f"{layer}.post_attention_layernorm.weight": make(64),
            f"{layer}.self_attn.q_proj.weight": make(64, 64),
            f"{layer}.self_attn.k_proj.weight": make(32, 64),
            f"{layer}.self_attn.v_proj.weight": make(32, 64),
            f"{layer}.self_attn.o_proj.weight": make(64, 64),
            f"{layer}.mlp.gate_proj.weight": make(88, 64),
            f"{layer}.mlp.up_proj.weight": make(88, 64),
            f"{layer}.mlp.down_proj.weight": make(64, 88),
        }
    return tensors


def write_checkpoint(
    folder: Path, tensors: Mapping[str, tuple[str, np.ndarray]], shards: int = 1, **changes: Any
) -> Path:
    """A checkpoint folder; ``changes`` are laid over config.json."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(hf_config(**changes)))
    if shards == 1:
        write_tensors(folder / "model.safetensors", tensors)
        return folder
    index: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[number::shards]}
        write_tensors(folder / file, part)
        index |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder
