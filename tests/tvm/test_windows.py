"""Families with attention of their own, against transformers in float32, on contexts longer than their windows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_build.targets.tvm_import import import_tvm

import_tvm()  # with the compiler, before anything loads only its runtime

from tests.tvm import family_line, tiny  # noqa: E402

EXACT = 2e-4  # of the logits' spread
BASE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 112, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 203, "max_position_embeddings": 160, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LONG = {
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 0.75,
        "long_factor": [1 + 0.3 * i for i in range(6)], "short_factor": [1 + 0.05 * i for i in range(6)],
    },
}  # fmt: skip
GEMMA = {"head_dim": 24, "num_hidden_layers": 3, "query_pre_attn_scalar": 20, "sliding_window": 37}
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
}

CASES: dict[str, tuple[str, dict[str, Any], str, dict[str, int]]] = {
    "mistral": ("mistral", {"sliding_window": None}, "q4f16_1", {}),
    "mistral, window, odd": (
        "mistral",
        {
            "sliding_window": 37, "hidden_size": 75, "num_attention_heads": 5, "num_key_value_heads": 1,
            "head_dim": 20, "tie_word_embeddings": True,
        },
        "q0f32", {"sliding_window_size": 37},
    ),
    "phi3, short factors": (
        "phi3", {**LONG, "original_max_position_embeddings": 160, "max_position_embeddings": 640}, "q0f32", {}
    ),
    "phi3, long factors, window": (
        "phi3", {**LONG, "original_max_position_embeddings": 64, "sliding_window": 50},
        "q0f32", {"sliding_window_size": 50},
    ),
    "gemma2": ("gemma2", {**GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5}, "q0f32", {}),
    "gemma2, no caps, untied": (
        "gemma2",
        {
            **GEMMA, "attn_logit_softcapping": None, "final_logit_softcapping": None, "tie_word_embeddings": False,
            "hidden_size": 66, "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 10,
            "num_hidden_layers": 2,
        },
        "q4f32_1", {},
    ),
    "mixtral, all but two experts": (
        "mixtral", {"intermediate_size": 48, "num_local_experts": 5, "num_experts_per_tok": 3}, "q0f32", {}
    ),
    "mixtral, packed, window": (
        "mixtral",
        {"intermediate_size": 80, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 30},
        "q4f16_1", {"sliding_window_size": 30},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        {"head_dim": 24, "moe_intermediate_size": 40, "num_experts": 6, "num_experts_per_tok": 2},
        "q4f32_1", {},
    ),
    "gemma3_text": (
        "gemma3_text",
        {
            **GEMMA, "rope_parameters": GEMMA3_ROPE, "layer_types": ["sliding_attention", "full_attention"],
            "num_hidden_layers": 2,
        },
        "q0f32", {},
    ),
}  # fmt: skip


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], family_line.Built]:
    done: dict[str, family_line.Built] = {}

    def build(name: str) -> family_line.Built:
        if name not in done:
            kind, fields, scheme, metadata = CASES[name]
            folder = tmp_path_factory.mktemp("family")
            done[name] = family_line.build(folder, kind, {**BASE, **fields}, tiny.SCHEMES[scheme], metadata)
        return done[name]

    return build


@pytest.mark.parametrize("name", CASES)
def test_every_way_through_the_cache(name: str, family: Callable[[str], family_line.Built]):
    found = family_line.errors(family(name), BASE["vocab_size"])
    assert set(found) == {"one shot", "chunked", "prefill", "decode", "interleaved"}
    assert max(found.values()) < EXACT, found


def test_sinks_stay_visible_at_their_own_positions(tmp_path: Path):
    sizes = {"sliding_window_size": 40, "attention_sink_size": 5}
    built = family_line.build(tmp_path, "mistral", {**BASE, "sliding_window": None}, metadata=sizes)
    with_sinks = family_line.Built(built.model, built.config_json, built.folder, (40, 5))
    assert max(family_line.errors(with_sinks, BASE["vocab_size"]).values()) < EXACT


def test_the_window_matters(family: Callable[[str], family_line.Built]):
    """The comparison can fail: a window that is one token wider is far outside the limit."""
    built = family("mistral, window, odd")
    tokens = np.random.default_rng(1).integers(0, BASE["vocab_size"], 128).tolist()
    wider = family_line.Built(built.model, built.config_json, built.folder, (38, 0))
    expected = built.expected(tokens)
    assert np.abs(expected - wider.expected(tokens)).max() / expected.std() > 10 * EXACT
