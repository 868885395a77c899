"""Tiny random Llamas: a transformers model, and an artifact of it written without the steps that the product uses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from llm_build import architectures
from llm_build.architectures.weights import WeightMap, to_source
from llm_build.quant import layout, reference
from llm_build.quant.layout import Scheme
from llm_build.steps import lower
from llm_build.targets import cpu

BASE = {
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 203,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
METADATA = {
    "context_window_size": 128,
    "sliding_window_size": -1,
    "prefill_chunk_size": 48,
    "attention_sink_size": 0,
    "max_batch_size": 3,
    "tensor_parallel_shards": 1,
}
GROUP = {"kind": "group", "bits": 4, "group_size": 32, "layout": "NK", "storage_dtype": "uint32"}
NONE = {"kind": "none", "bits": 0, "group_size": 0, "layout": "", "storage_dtype": ""}
WHOLE = {"quantize_embedding": True, "quantize_head": True}
SCHEMES = {
    "q0f32": layout.parse_scheme({"name": "q0f32", **NONE, "dtype": "float32", **WHOLE}),
    "q0f16": layout.parse_scheme({"name": "q0f16", **NONE, "dtype": "float16", **WHOLE}),
    "q4f16_1": layout.parse_scheme({"name": "q4f16_1", **GROUP, "dtype": "float16", **WHOLE}),
    "q4f32_1": layout.parse_scheme({"name": "q4f32_1", **GROUP, "dtype": "float32", **WHOLE}),
    "q3f16_1": layout.parse_scheme(
        {"name": "q3f16_1", **GROUP, "bits": 3, "group_size": 40, "dtype": "float16", **WHOLE}
    ),
    "q4f16_2": layout.parse_scheme(
        {"name": "q4f16_2", **GROUP, "dtype": "float16", "quantize_embedding": False, "quantize_head": False}
    ),
}


def transformers_model(architecture: Mapping[str, Any], seed: int = 0) -> Any:
    """A LlamaForCausalLM in float32 whose weights are large enough that logits differ from token to token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    fields = dict(architecture)
    rope = {"rope_theta": fields.pop("rope_theta"), **(fields.pop("rope_scaling") or {"rope_type": "default"})}
    config = LlamaConfig(**fields, rope_parameters=rope)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            else:
                parameter.copy_(
                    torch.randn_like(parameter) * (0.5 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5)
                )
    return model


def checkpoint(model: Any) -> dict[str, np.ndarray]:
    """The tensors that the model would be saved with (a tied head is not)."""
    tied = model.config.tie_word_embeddings
    return {n: t.detach().numpy() for n, t in model.state_dict().items() if not (tied and n == "lm_head.weight")}


def weight_map(config: Any, tensors: Mapping[str, np.ndarray]) -> WeightMap:
    shapes = {name: {"dtype": "F32", "shape": list(array.shape)} for name, array in tensors.items()}
    return architectures.load("llama").weight_map(config, {"tensors": shapes})


def stored(config: Any, tensors: Mapping[str, np.ndarray], scheme: Scheme) -> dict[str, np.ndarray]:
    """The artifact's tensors by name."""
    pieces = {}
    entries = weight_map(config, tensors).entries
    for parameter, entry in zip(architectures.load("llama").parameters(config), entries, strict=True):
        array = np.concatenate([tensors[source.tensor] for source in entry.sources])
        kept = layout.stored_tensors(parameter, scheme)
        values = (array.astype(scheme.dtype),) if len(kept) == 1 else reference.quantize(array, scheme)
        pieces |= {piece.name: value for piece, value in zip(kept, values, strict=True)}
    return pieces


def dequantized(config: Any, tensors: Mapping[str, np.ndarray], scheme: Scheme) -> dict[str, np.ndarray]:
    """The checkpoint's tensors as the artifact's ones stand for them."""
    pieces, arrays = stored(config, tensors, scheme), {}
    for parameter in architectures.load("llama").parameters(config):
        kept = [pieces[piece.name] for piece in layout.stored_tensors(parameter, scheme)]
        whole = len(kept) == 1
        arrays[parameter.name] = (
            kept[0].astype(np.float32) if whole else reference.dequantize(*kept, parameter.shape[1], scheme)
        )
    return to_source(weight_map(config, tensors).entries, arrays)


def write_artifact(
    folder: Path, architecture: Mapping[str, Any], tensors: Mapping[str, np.ndarray], scheme: Scheme
) -> Path:
    """Weights in two shards, an index, and the library."""
    config = architectures.load("llama").from_architecture(architecture)
    folder.mkdir(parents=True, exist_ok=True)
    pieces = stored(config, tensors, scheme)
    names = list(pieces)
    shards = []
    for index, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        records, offset, path = [], 0, folder / f"params_shard_{index}.bin"
        with path.open("wb") as file:
            for name in part:
                data = np.ascontiguousarray(pieces[name])
                file.write(data.tobytes())
                records.append(
                    {
                        "name": name, "shape": list(data.shape), "dtype": str(data.dtype), "format": "raw",
                        "nbytes": data.nbytes, "byteOffset": offset,
                    }
                )  # fmt: skip
                offset += data.nbytes
        shards.append({"dataPath": path.name, "format": "raw-shard", "nbytes": offset, "records": records})
    (folder / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": shards}))
    compile_library(folder, architecture, scheme)
    return folder


def lower_params(architecture: Mapping[str, Any], scheme: Scheme, level: str = "host") -> dict[str, Any]:
    name, features = cpu.resolve(level)
    triple = cpu.triple_of(name, None)
    target = {"kind": "cpu", "triple": triple, "cpu": name, "features": list(features)}
    return {
        "family": "llama", "architecture": dict(architecture), "scheme": asdict(scheme), "target": target,
        "metadata": METADATA,
    }  # fmt: skip


class FolderOut:
    """Writes a step's outputs into a folder; keeps what it reports."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.context, self.threads = folder, {}, 2
        self.labels: list[str] = []
        self.facts: dict[str, Any] = {}

    def path(self, name: str) -> Path:
        return self.folder / name

    def link(self, name: str, source: Any) -> None:
        raise AssertionError(name)

    def slice(self, name: str, digest: str, nbytes: int, of: str, offset: int) -> None:
        raise AssertionError(name)

    def fact(self, name: str, value: Any) -> None:
        self.facts[name] = value

    def warn(self, message: str) -> None:
        raise AssertionError(message)

    def progress(self, done: int, total: int, unit: str = "", label: str = "") -> None:
        self.labels.append(label)


def compile_library(folder: Path, architecture: Mapping[str, Any], scheme: Scheme, level: str = "host") -> FolderOut:
    folder.mkdir(parents=True, exist_ok=True)
    out = FolderOut(folder)
    lower.run(lower_params(architecture, scheme, level), {}, out)
    return out
