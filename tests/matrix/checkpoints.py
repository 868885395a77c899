"""A small random checkpoint of every family, with the demo's tokenizer, made by transformers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import llm_build

DEMO = Path(llm_build.__file__).parent / "demo"
SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 240, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 3072, "max_position_embeddings": 256,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
WINDOW = {"sliding_window": 64}
FAMILIES: dict[str, dict[str, Any]] = {  # model_type -> what it has besides the sizes
    "llama": {},
    "smollm3": {"no_rope_layer_interval": 2},
    "gpt_neox": {},
    "mistral": WINDOW,
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "phi3": {},
    "gemma2": {**WINDOW, "head_dim": 32},
    "gemma3_text": {**WINDOW, "head_dim": 32, "num_hidden_layers": 6},
    "olmo2": {},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        "head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
        "decoder_sparse_step": 1,
    },
}  # fmt: skip


def make(model_type: str, folder: Path, **sizes: Any) -> Path:
    """The checkpoint in ``folder``; float16 weights, seed 0. ``sizes``: other fields of its config.json."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **FAMILIES[model_type], **sizes})
    model = AutoModelForCausalLM.from_config(config).to(torch.float16)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder / name)
    return folder
