"""config.json of the families with attention of their own: both spellings, and what is refused by name."""

from __future__ import annotations

from typing import Any

import pytest

from llm_build import architectures
from llm_build.core.errors import UserError

gemma2, gemma3_text, mistral, mixtral, phi3 = (
    architectures.load(name) for name in ("gemma2", "gemma3_text", "mistral", "mixtral", "phi3")
)
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100, "max_position_embeddings": 256,
}  # fmt: skip
GEMMA = {**SIZES, "head_dim": 16, "hidden_activation": "gelu_pytorch_tanh"}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
LOCAL, EVERYWHERE = "sliding_attention", "full_attention"


def test_the_window_of_mistral():
    assert mistral.from_hf({**SIZES, "sliding_window": None}).sliding_window is None
    assert mistral.from_hf({**SIZES, "sliding_window": 128}).sliding_window == 128
    assert mistral.from_hf(SIZES).sliding_window == 4096  # MistralConfig's default
    assert mixtral.from_hf(SIZES).sliding_window is None
    assert (mixtral.from_hf(SIZES).num_local_experts, mixtral.from_hf(SIZES).num_experts_per_tok) == (8, 2)


def test_spellings_of_long_rope():
    old = {**SIZES, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    old["rope_scaling"] = {"type": "su", **FACTORS}
    new = {**SIZES, "original_max_position_embeddings": 64}
    new["rope_parameters"] = {"rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0, **FACTORS}
    assert phi3.from_hf(old) == phi3.from_hf(new)
    scaling = phi3.from_hf(new).rope_scaling
    assert scaling is not None
    assert scaling["attention_factor"] == pytest.approx((1 + 1 / 3) ** 0.5)  # sqrt(1 + ln 4 / ln 64)
    assert phi3.from_hf({**SIZES, "partial_rotary_factor": 0.5}).rotary_dim == 8


def test_spellings_of_two_rotary_bases():
    old = {
        **GEMMA,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": {"rope_type": "linear", "factor": 8},
    }
    new = {**GEMMA}
    new["rope_parameters"] = {
        LOCAL: {"rope_type": "default", "rope_theta": 1e4},
        EVERYWHERE: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8},
    }
    config = gemma3_text.from_hf(new)
    assert gemma3_text.from_hf(old) == config
    assert (config.rope_theta, config.rope_local_base_freq, config.rope_factor) == (1e6, 1e4, 8.0)


@pytest.mark.parametrize(
    ("layer_types", "every"),
    [
        (None, 2), ([LOCAL, EVERYWHERE] * 2, 2), ([LOCAL, LOCAL, LOCAL, EVERYWHERE], 4), ([EVERYWHERE] * 4, 1),
        ([LOCAL] * 4, 5),
    ],
)  # fmt: skip
def test_which_layers_see_everything(layer_types, every):
    assert gemma2.from_hf({**GEMMA, "layer_types": layer_types}).full_attention_every == every
    assert gemma3_text.from_hf({**GEMMA, "sliding_window_pattern": 3}).full_attention_every == 3


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "windows of smollm3": ("smollm3", {**SIZES, "use_sliding_window": True}, "use_sliding_window is True"),
    "windowed layers of smollm3": ("smollm3", {**SIZES, "layer_types": [LOCAL] * 4}, "layer_types is"),
    "rotation without a pattern": ("smollm3", {**SIZES, "no_rope_layers": [0, 1, 1, 0]}, "no_rope_layers is [0, 1, 1"),
    "activation": ("mistral", {**SIZES, "hidden_act": "relu"}, "hidden_act is 'relu'"),
    "rope type": ("mistral", {**SIZES, "rope_scaling": {"type": "yarn", "factor": 2}}, "is 'yarn'"),
    "phi3 rope type": ("phi3", {**SIZES, "rope_scaling": {"type": "yarn", "factor": 2}}, "is 'yarn'"),
    "phi3 factors": (
        "phi3", {**SIZES, "rope_scaling": {"type": "longrope", **FACTORS, "long_factor": [1.0]}}, "8 numbers"
    ),
    "phi3 no factors": ("phi3", {**SIZES, "rope_scaling": {"type": "su", "long_factor": [1.0] * 8}}, "no short_factor"),
    "bidirectional": ("gemma2", {**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    "gemma2 layers": (
        "gemma2", {**GEMMA, "layer_types": [EVERYWHERE, LOCAL, LOCAL, LOCAL]}, "full_attention in every n-th layer"
    ),
    "gemma2 rope": ("gemma2", {**GEMMA, "rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling"),
    "gemma3 caps": ("gemma3_text", {**GEMMA, "final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
    "gemma3 rope": ("gemma3_text", {**GEMMA, "rope_parameters": {"rope_theta": 1e4}}, "an object for each of"),
    "gemma3 local rope": (
        "gemma3_text",
        {**GEMMA, "rope_parameters": {LOCAL: {"rope_type": "linear", "factor": 2.0}}}, "sliding_attention",
    ),
    "experts": ("mixtral", {**SIZES, "num_local_experts": 2, "num_experts_per_tok": 3}, "1 to 2, all experts"),
    "jitter": ("mixtral", {**SIZES, "router_jitter_noise": 0.1}, "router_jitter_noise is 0.1"),
}  # fmt: skip


def test_layers_without_rotation():
    smollm3 = architectures.load("smollm3")
    assert smollm3.from_hf(SIZES).no_rope_layer_interval == 4
    assert smollm3.from_hf({**SIZES, "no_rope_layers": [1, 0, 1, 0, 1]}).no_rope_layer_interval == 2
    assert smollm3.from_hf({**SIZES, "no_rope_layers": [1, 1, 1, 1]}).no_rope_layer_interval == 5
    assert smollm3.from_hf({**SIZES, "no_rope_layer_interval": 3}).no_rope_layer_interval == 3
    turns = [layer.attention.query_key for layer in smollm3.describe(smollm3.from_hf(SIZES)).layers]
    assert [turn is not None for turn in turns] == [True, True, True, False]


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_implemented_is_refused_by_name(name):
    family, config_json, said = REFUSED[name]
    with pytest.raises(UserError) as error:
        architectures.load(family).from_hf(config_json)
    assert said in error.value.message


def test_fused_projections_are_one_source_and_experts_are_many():
    phi = phi3.from_hf(SIZES)
    shapes = {p.name: {"dtype": "F32", "shape": list(p.shape)} for p in phi3.parameters(phi)}
    entries = {entry.name: entry for entry in phi3.weight_map(phi, {"tensors": shapes}).entries}
    assert [s.tensor for s in entries["model.layers.0.self_attn.qkv_proj.weight"].sources] == [
        "model.layers.0.self_attn.qkv_proj.weight"
    ]
    config = mixtral.from_hf({**SIZES, "num_local_experts": 3, "num_hidden_layers": 1})
    stacked = {p.name: p for p in mixtral.parameters(config)}["model.layers.0.block_sparse_moe.gate_up_proj.weight"]
    assert (stacked.shape, stacked.kind) == ((3 * 2 * 96, 64), "linear")
    with pytest.raises(UserError, match=r"no tensor"):
        mixtral.weight_map(config, {"tensors": shapes})
