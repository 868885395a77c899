"""Families without attention of their own against transformers: random tiny models, every path through the library."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
import torch

from llm_build import architectures
from tests.tvm import family_line, tiny
from tests.tvm.family_line import Built

EXACT = 2e-4  # of the logits' spread
PATHS = {"one shot", "chunked", "prefill", "decode", "interleaved"}
SMALL = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4,
    "vocab_size": 203, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {  # wavelengths on all three sides of its two limits
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
ODD = {"hidden_size": 60, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 20}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # family, scheme, fields of config.json
    "llama, llama3 rope, tied": (
        "llama", "q0f32", {"rope_parameters": LLAMA3, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "llama, linear rope": ("llama", "q0f16", {"rope_parameters": LINEAR, **ODD, "attention_bias": True}),
    "smollm3": ("smollm3", "q0f32", {"num_key_value_heads": 2, "num_hidden_layers": 4, "no_rope_layer_interval": 3}),
    "smollm3, llama3 rope, odd, biases": ("smollm3", "q4f16_1", {
        **ODD, "rope_parameters": LLAMA3, "attention_bias": True, "no_rope_layers": [1, 0],
    }),
    "gpt_neox, parallel": ("gpt_neox", "q0f32", {"rope_parameters": {"partial_rotary_factor": 0.25}}),
    "gpt_neox, sequential, tied, no attention bias": ("gpt_neox", "q4f32_1", {
        "use_parallel_residual": False, "hidden_act": "gelu_new", "hidden_size": 90, "num_attention_heads": 5,
        "attention_bias": False, "tie_word_embeddings": True, "layer_norm_eps": 1e-3,
        "rope_parameters": {"partial_rotary_factor": 1.0, "rope_theta": 5e3},
    }),
    "qwen2": ("qwen2", "q0f32", {"num_key_value_heads": 2, "rope_parameters": {"rope_theta": 1e6}}),
    "qwen2, odd, tied": ("qwen2", "q4f16_1", {**ODD, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", "q0f32", {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}),
    "qwen3, odd, biases": ("qwen3", "q0f16", {**ODD, "attention_bias": True, "rms_norm_eps": 1e-3}),
    "olmo2": ("olmo2", "q0f32", {"num_key_value_heads": 4}),
    "olmo2, odd, biases, tied": ("olmo2", "q4f16_1", {
        "hidden_size": 60, "num_attention_heads": 6, "num_key_value_heads": 3, "attention_bias": True,
        "tie_word_embeddings": True, "rms_norm_eps": 1e-3,
    }),
}  # fmt: skip


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    family, scheme, fields = CASES[request.param]
    return family_line.build(tmp_path_factory.mktemp("case"), family, SMALL | fields, tiny.SCHEMES[scheme])


def test_every_path_agrees_with_transformers(built: Built):
    found = family_line.errors(built, SMALL["vocab_size"])
    print({path: f"{error:.1e}" for path, error in found.items()})
    assert set(found) == PATHS
    assert max(found.values()) < EXACT, found


def test_every_norm_and_bias_counts(built: Built):
    """The comparison can fail: 2% on any vector of the first layer is outside the limit."""
    tokens = np.random.default_rng(3).integers(0, SMALL["vocab_size"], 60).tolist()
    engine, expected = built.engine(), built.expected(tokens)
    found = engine.logits(engine.add_sequence(), tokens[: engine.chunk])
    vectors = {n: p for n, p in built.model.named_parameters() if ".layers.0." in n and p.ndim == 1}
    assert vectors
    with torch.no_grad():
        for name, vector in vectors.items():
            kept = vector.clone()
            vector.mul_(1.02)
            changed = built.expected(tokens)[: engine.chunk]
            vector.copy_(kept)
            assert np.abs(found - changed).max() / expected.std() > 2 * EXACT, name


def old_spelling(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers 4 wrote it."""
    old = {key: value for key, value in config.items() if key not in ("rope_parameters", "layer_types", "dtype")}
    rope = dict(config["rope_parameters"])
    neox = config["model_type"] == "gpt_neox"
    old["rotary_emb_base" if neox else "rope_theta"] = rope.pop("rope_theta")
    if neox:
        old["rotary_pct"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {"type" if kind == "linear" else "rope_type": kind, **rope}
    return old


def test_both_spellings_of_config_json(built: Built):
    config = built.config_json
    family = architectures.load(architectures.recognise(config))
    architecture = asdict(family.from_hf(config))
    assert asdict(family.from_hf(old_spelling(config))) == architecture
    assert asdict(family.from_architecture(architecture)) == architecture
