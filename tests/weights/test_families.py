"""config.json of well-known checkpoints -> Config and parameter table of each family, and what each family refuses."""

from __future__ import annotations

from dataclasses import asdict, replace
from math import prod
from typing import Any

import numpy as np
import pytest

from llm_build import architectures
from llm_build.architectures import weights
from llm_build.architectures.foreign import FOREIGN
from llm_build.architectures.table import entries_of
from llm_build.core.errors import UserError

gpt_neox, llama, qwen2 = (architectures.load(name) for name in ("gpt_neox", "llama", "qwen2"))
LLAMA3 = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
KNOWN: dict[str, tuple[dict[str, Any], int]] = {  # the fields that count, and the number of weights, as published
    "Llama-3.2-1B": ({
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_scaling": LLAMA3, "max_position_embeddings": 131072,
        "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False, "hidden_act": "silu",
    }, 1_235_814_400),
    "pythia-160m": ({
        "model_type": "gpt_neox", "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "vocab_size": 50304, "hidden_act": "gelu", "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "max_position_embeddings": 2048, "tie_word_embeddings": False,
        "use_parallel_residual": True,
    }, 162_322_944),
    "gpt-neox-20b": ({
        "model_type": "gpt_neox", "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44,
        "num_attention_heads": 64, "vocab_size": 50432, "hidden_act": "gelu_fast", "layer_norm_eps": 1e-5,
        "rotary_emb_base": 10000, "rotary_pct": 0.25, "max_position_embeddings": 2048, "tie_word_embeddings": False,
    }, 20_554_567_680),
    "Qwen2.5-0.5B": ({
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0, "max_position_embeddings": 32768, "tie_word_embeddings": True, "hidden_act": "silu",
        "use_sliding_window": False, "sliding_window": 32768, "max_window_layers": 24,
    }, 494_032_768),
    "Qwen3-0.6B": ({
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000, "rope_scaling": None, "max_position_embeddings": 40960,
        "tie_word_embeddings": True, "attention_bias": False, "hidden_act": "silu", "use_sliding_window": False,
    }, 596_049_920),
    "OLMo-2-0425-1B": ({
        "model_type": "olmo2", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 100352, "rms_norm_eps": 1e-6,
        "rope_theta": 500000, "rope_scaling": None, "max_position_embeddings": 4096, "tie_word_embeddings": False,
        "attention_bias": False, "hidden_act": "silu",
    }, 1_484_916_736),
}  # fmt: skip


def known(name: str, **changes: Any) -> dict[str, Any]:
    return KNOWN[name][0] | changes


@pytest.mark.parametrize("name", KNOWN)
def test_well_known_checkpoints_have_their_published_size(name: str) -> None:
    config_json, published = KNOWN[name]
    family = architectures.load(architectures.recognise(config_json))
    config = family.from_hf(config_json)
    assert sum(prod(parameter.shape) for parameter in family.parameters(config)) == published
    assert asdict(family.from_architecture(asdict(config))) == asdict(config)


def test_what_is_read_from_them() -> None:
    assert llama.from_hf(known("Llama-3.2-1B")).rope_scaling == LLAMA3
    neox = gpt_neox.from_hf(known("gpt-neox-20b"))
    assert (neox.head_dim, neox.rotary_dim, neox.hidden_act, neox.use_parallel_residual) == (96, 24, "gelu_tanh", True)
    assert gpt_neox.from_hf(known("pythia-160m", rope_scaling={"type": "linear", "factor": 2})).rope_scaling == {
        "rope_type": "linear",
        "factor": 2,
    }
    old = {key: value for key, value in known("pythia-160m").items() if not key.startswith("rotary")}
    assert gpt_neox.from_hf(old).rotary_dim == 16


REFUSED: list[tuple[str, str, dict[str, Any]]] = [  # checkpoint, the field that is named, config.json
    ("Llama-3.2-1B", "rope_scaling.rope_type", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
    ("Llama-3.2-1B", "rope_scaling.mscale", {"rope_scaling": {**LLAMA3, "mscale": 1.0}}),
    ("pythia-160m", "hidden_act", {"hidden_act": "relu"}),
    ("pythia-160m", "hidden_act", {"hidden_act": "quick_gelu"}),
    ("pythia-160m", "rope_parameters.rope_type", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    ("Qwen2.5-0.5B", "use_sliding_window", {"use_sliding_window": True}),
    ("Qwen2.5-0.5B", "layer_types", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("Qwen2.5-0.5B", "rope_scaling.type", {"rope_scaling": {"type": "yarn", "factor": 4.0}}),
    ("Qwen3-0.6B", "use_sliding_window", {"use_sliding_window": True}),
    ("Qwen3-0.6B", "hidden_act", {"hidden_act": "gelu"}),
    ("Qwen3-0.6B", "quantization_config", {"quantization_config": {"quant_method": "fp8"}}),
    ("OLMo-2-0425-1B", "sliding_window", {"sliding_window": 4096}),
    ("OLMo-2-0425-1B", "rope_parameters.partial_rotary_factor", {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    ("Llama-3.2-1B", "embedding_multiplier", {"embedding_multiplier": 12.0}),
    ("Llama-3.2-1B", "final_logit_softcapping", {"final_logit_softcapping": 30.0}),
    ("Llama-3.2-1B", "num_experts", {"num_experts": 8}),
    ("Qwen3-0.6B", "attention_chunk_size", {"attention_chunk_size": 8192}),
    ("OLMo-2-0425-1B", "clip_qkv", {"clip_qkv": 8.0}),
    ("pythia-160m", "alibi", {"alibi": True}),
]


@pytest.mark.parametrize("field", sorted(FOREIGN))
def test_a_foreign_field_that_is_switched_off_is_harmless(field: str) -> None:
    for value in FOREIGN[field]:
        assert architectures.load("llama").from_hf(known("Llama-3.2-1B", **{field: value}))


@pytest.mark.parametrize(("name", "field", "change"), REFUSED, ids=[f"{name} {field}" for name, field, _ in REFUSED])
def test_a_field_that_changes_the_maths_is_refused_by_name(name: str, field: str, change: dict[str, Any]) -> None:
    config_json = known(name, **change)
    with pytest.raises(UserError) as error:
        architectures.load(config_json["model_type"]).from_hf(config_json)
    assert error.value.message.startswith(f"config.json: {field} is ")
    assert f"not implemented for {config_json['model_type']}" in error.value.message


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("Llama-3.2-1B", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "has no low_freq_factor, which rope_ty"),
    ("Llama-3.2-1B", {"rope_scaling": {**LLAMA3, "factor": 0}}, "rope_scaling.factor: found 0; allowed: a finite"),
    ("Llama-3.2-1B", {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "low_freq_factor 4.0 must be below"),
    ("Llama-3.2-1B", {"rope_scaling": {**LLAMA3, "type": "linear"}}, "gives rope_scaling.rope_type twice"),
    ("Llama-3.2-1B", {"rope_parameters": {**LLAMA3, "factor": 8.0}}, "gives rope_scaling twice"),
    ("pythia-160m", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "gives partial_rotary_factor twice"),
    ("pythia-160m", {"rope_theta": 5e5}, "gives rope_theta twice"),
    ("pythia-160m", {"rotary_pct": "a quarter"}, "rotary_pct: found 'a quarter'"),
    ("pythia-160m", {"rotary_pct": 0.36}, "rotary_dim: found 23; allowed"),
    ("pythia-160m", {"rotary_pct": 1.5}, "rotary_pct: found 1.5; allowed: a finite number above 0 to 1"),
    ("pythia-160m", {"num_attention_heads": 11}, "num_attention_heads: found 11; allowed: a divisor of hidden_size"),
    ("Qwen3-0.6B", {"num_key_value_heads": 3}, "num_key_value_heads: found 3"),
    ("OLMo-2-0425-1B", {"intermediate_size": None}, "config.json has no intermediate_size, which an olmo2 needs"),
]


@pytest.mark.parametrize(("name", "change", "message"), WRONG, ids=[message[:40] for _, _, message in WRONG])
def test_wrong_values(name: str, change: dict[str, Any], message: str) -> None:
    config_json = known(name, **change)
    with pytest.raises(UserError) as error:
        architectures.load(config_json["model_type"]).from_hf(config_json)
    assert message in error.value.message


def test_overrides() -> None:
    config = gpt_neox.from_hf(known("pythia-160m"))
    longer = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "max_position_embeddings": 4096}
    assert asdict(gpt_neox.apply_overrides(config, longer)) == {**asdict(config), **longer}
    with pytest.raises(UserError, match="use_parallel_residual: the recipe says False and the checkpoint says True"):
        gpt_neox.apply_overrides(config, {"use_parallel_residual": False})
    with pytest.raises(UserError, match=r"rope_scaling: found \{'rope_type': 'ntk'\}; allowed: null; rope_type linear"):
        qwen2.apply_overrides(qwen2.from_hf(known("Qwen2.5-0.5B")), {"rope_scaling": {"rope_type": "ntk"}})


def test_heads_of_gpt_neox_are_sorted_into_q_k_v() -> None:
    """transformers views a row of query_key_value's output as (heads, 3, head_dim)."""
    config = replace(
        gpt_neox.from_hf(known("pythia-160m")), hidden_size=12, num_attention_heads=3, head_dim=4, rotary_dim=2,
        num_hidden_layers=1, intermediate_size=8, vocab_size=5,
    )  # fmt: skip
    shapes = {slice_.tensor: slice_.shape for entry in entries_of(gpt_neox.rows(config)) for slice_ in entry.sources}
    layer = "gpt_neox.layers.0.attention"
    shapes |= {f"{layer}.bias": (1, 1, 8, 8), f"{layer}.masked_bias": (), f"{layer}.rotary_emb.inv_freq": (1,)}
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found = gpt_neox.weight_map(
        config, {"tensors": {name: {"dtype": "F32", "shape": list(shape)} for name, shape in shapes.items()}}
    )
    assert found.dropped == (f"{layer}.bias", f"{layer}.masked_bias", f"{layer}.rotary_emb.inv_freq")
    arrays = {
        entry.name: np.concatenate([tensors[s.tensor][s.start : s.stop] for s in entry.sources])
        for entry in found.entries
    }
    x = rng.standard_normal(12).astype(np.float32)
    theirs = (tensors[f"{layer}.query_key_value.weight"] @ x + tensors[f"{layer}.query_key_value.bias"]).reshape(
        3, 3, 4
    )
    ours = (arrays[f"{layer}.qkv_proj.weight"] @ x + arrays[f"{layer}.qkv_proj.bias"]).reshape(3, 3, 4)
    np.testing.assert_array_equal(ours, theirs.transpose(1, 0, 2))
    back = weights.to_source(found.entries, arrays)
    assert sorted(back) == sorted(set(tensors) - set(found.dropped))
    assert all(np.array_equal(back[name], tensors[name]) for name in back)
