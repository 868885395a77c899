"""The demo model's checkpoint: its architecture, and its files: Hugging Face layout, float16, two shards."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizer import BOS_ID, CONTEXT_TOKENS, EOS_ID, VOCAB_SIZE
from transformers import LlamaConfig, LlamaForCausalLM

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": BOS_ID,
    "dtype": "float16",
    "eos_token_id": EOS_ID,
    "head_dim": 32,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 704,
    "max_position_embeddings": CONTEXT_TOKENS,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": VOCAB_SIZE,
}
SHAPE_KEYS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
GENERATION_CONFIG = {
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "do_sample": True,
    "temperature": 0.8,
    "top_p": 0.9,
}


def build_model(changes: dict[str, int]) -> LlamaForCausalLM:
    """A float32 model with fresh weights; `changes` replaces entries of CONFIG (the teachers are wider)."""
    return LlamaForCausalLM(LlamaConfig(**(CONFIG | {"dtype": "float32"} | changes)))


def save_checkpoint(model: LlamaForCausalLM, out: Path) -> None:
    """Write config, generation config, both float16 shards and the index into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    found = model.config.to_dict()
    write_json(out / "config.json", CONFIG | {key: found[key] for key in SHAPE_KEYS})
    write_json(out / "generation_config.json", GENERATION_CONFIG)
    tensors = {name: value.to(torch.float16).contiguous().cpu() for name, value in model.state_dict().items()}
    half = model.config.num_hidden_layers // 2
    weight_map = {name: SHARDS[shard_of(name, half)] for name in sorted(tensors)}
    for shard in SHARDS:
        part = {name: tensors[name] for name, file in weight_map.items() if file == shard}
        save_file(part, out / shard, metadata={"format": "pt"})
        (out / shard).chmod(0o644)
    total = sum(value.numel() * value.element_size() for value in tensors.values())
    write_json(out / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})


def shard_of(name: str, first_layers: int) -> int:
    """0 for the embedding and the first layers, 1 for the rest."""
    parts = name.split(".")
    if parts[1] == "layers":
        return int(int(parts[2]) >= first_layers)
    return 0 if parts[1] == "embed_tokens" else 1


def write_json(path: Path, value: dict[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")
