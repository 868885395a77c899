"""config.json -> Config -> weight map, and what each refuses."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from llm_build import architectures
from llm_build.architectures import weights
from llm_build.core.digest import canonical
from llm_build.core.errors import UserError
from tests.weights.weights_line import ARCHITECTURE, METADATA, hf_config, source_tensors

llama = architectures.load("llama")
CONFIG = llama.from_architecture(ARCHITECTURE)


def layout(tensors: dict[str, tuple[str, np.ndarray]] | None = None) -> dict[str, Any]:
    found = tensors or source_tensors()
    return {"tensors": {name: {"dtype": dtype, "shape": list(a.shape)} for name, (dtype, a) in sorted(found.items())}}


def test_the_family_table() -> None:
    assert architectures.recognise(hf_config()) == "llama"
    assert llama.name == "llama"
    with pytest.raises(UserError, match=r"model_type 'gpt9' is not supported; supported: .*gpt_neox, llama"):
        architectures.recognise({"model_type": "gpt9"})
    with pytest.raises(UserError, match="no model_type"):
        architectures.recognise({})
    with pytest.raises(UserError, match="'gpt9' is not supported"):
        architectures.load("gpt9")


NEW_SPELLING = hf_config(head_dim=16, dtype="float16", rope_parameters={"rope_theta": 10000.0, "rope_type": "default"})
del NEW_SPELLING["rope_theta"]
SPELLINGS: dict[str, dict[str, Any]] = {
    "transformers 4": hf_config(),
    "transformers 5": NEW_SPELLING,
    "nulls": hf_config(head_dim=None, rope_scaling=None, sliding_window=None, layer_types=None),
    "scaling by one": hf_config(rope_scaling={"type": "default", "factor": 1.0}),
    "trivial scaling": hf_config(rope_scaling={"type": "default"}, hidden_act="swish", pretraining_tp=2),
    "both places agree": hf_config(rope_parameters={"rope_theta": 10000.0}),
    "whole number": hf_config(rope_theta=10000),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_spellings(spelling: str) -> None:
    assert asdict(llama.from_hf(SPELLINGS[spelling])) == ARCHITECTURE


def test_defaults_of_old_configs() -> None:
    config = hf_config()
    optional = (
        "num_key_value_heads",
        "rope_theta",
        "rms_norm_eps",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
    )
    for key in optional:
        del config[key]
    found = llama.from_hf(config)
    assert (found.num_key_value_heads, found.rope_theta, found.rms_norm_eps) == (4, 10000.0, 1e-6)
    assert (found.tie_word_embeddings, found.attention_bias, found.mlp_bias) == (False, False, False)
    assert llama.from_hf(hf_config(head_dim=24)).head_dim == 24


def test_it_reads_what_transformers_writes() -> None:
    transformers = pytest.importorskip("transformers")
    written = transformers.LlamaConfig(
        **{key: value for key, value in ARCHITECTURE.items() if not key.startswith("rope_")},
        rope_parameters={"rope_theta": 5e5, "rope_type": "default"},
    ).to_dict()
    assert asdict(llama.from_hf(written)) == {**ARCHITECTURE, "rope_theta": 5e5}


REFUSED: dict[str, dict[str, Any]] = {
    "hidden_act": {"hidden_act": "gelu"},
    "sliding_window": {"sliding_window": 4096},
    "rope_scaling.rope_type": {"rope_scaling": {"rope_type": "dynamic", "factor": 8.0}},
    "rope_scaling.type": {"rope_scaling": {"type": "yarn", "factor": 2.0}},
    "rope_scaling.beta_fast": {"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 32}},
    "rope_parameters.rope_type": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0}},
    "rope_scaling.factor": {"rope_scaling": {"factor": 2.0}},
    "rope_parameters.partial_rotary_factor": {"rope_parameters": {"partial_rotary_factor": 0.5}},
    "partial_rotary_factor": {"partial_rotary_factor": 0.25},
    "quantization_config": {"quantization_config": {"quant_method": "gptq"}},
    "layer_types": {"layer_types": ["full_attention", "sliding_attention"]},
}


@pytest.mark.parametrize("field", REFUSED)
def test_a_field_that_changes_the_maths_is_refused_by_name(field: str) -> None:
    with pytest.raises(UserError) as error:
        llama.from_hf(hf_config(**REFUSED[field]))
    assert error.value.message.startswith(f"config.json: {field} is ")
    assert "not implemented for llama" in error.value.message


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": None}, "config.json has no hidden_size"),
    ({"hidden_size": "64"}, "config.json: hidden_size: found '64'; allowed: a whole number"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: found 0"),
    ({"vocab_size": True}, "vocab_size: found True"),
    ({"vocab_size": 96.0}, "vocab_size: found 96.0"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps: found -1e-05"),
    ({"rope_theta": float("nan")}, "rope_theta: found nan"),
    ({"num_key_value_heads": 3}, "num_key_value_heads: found 3; allowed: a divisor of num_attention_heads (4)"),
    ({"num_attention_heads": 5}, "num_attention_heads: found 5; allowed: a divisor of hidden_size (64)"),
    ({"head_dim": 15}, "head_dim: found 15; allowed: an even number"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: found 'yes'; allowed: true or false"),
    ({"rope_scaling": "linear"}, "rope_scaling: found 'linear'; allowed: an object"),
    ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta twice"),
]


@pytest.mark.parametrize(("change", "found"), WRONG, ids=[next(iter(change)) for change, _ in WRONG])
def test_wrong_values(change: dict[str, Any], found: str) -> None:
    with pytest.raises(UserError) as error:
        llama.from_hf(hf_config(**change))
    assert found in error.value.message


def test_overrides() -> None:
    free = {"rope_theta": 5e5, "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "hidden_size": 64}
    assert asdict(llama.apply_overrides(CONFIG, free)) == {**ARCHITECTURE, **free}
    for key, value in {
        "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 32, "vocab_size": 97, "tie_word_embeddings": True, "mlp_bias": True,
    }.items():  # fmt: skip
        with pytest.raises(UserError) as error:
            llama.apply_overrides(CONFIG, {key: value})
        expected = f"architecture.{key}: the recipe says {value!r} and the checkpoint says {ARCHITECTURE[key]!r}"
        assert error.value.message.startswith(expected)
    with pytest.raises(UserError, match=r"architecture\.rope_base is not a key of a llama; did you mean rope_theta"):
        llama.apply_overrides(CONFIG, {"rope_base": 1e4})
    with pytest.raises(UserError, match="rope_theta: found 'x'"):
        llama.apply_overrides(CONFIG, {"rope_theta": "x"})


def test_parameters_of_the_compiled_model() -> None:
    table = {parameter.name: parameter for parameter in llama.parameters(CONFIG)}
    assert list(table)[:7] == [
        "model.embed_tokens.weight",
        "model.layers.0.input_layernorm.weight",
        "model.layers.0.self_attn.qkv_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.post_attention_layernorm.weight",
        "model.layers.0.mlp.gate_up_proj.weight",
        "model.layers.0.mlp.down_proj.weight",
    ]
    assert list(table)[-2:] == ["model.norm.weight", "lm_head.weight"]
    assert table["model.layers.1.self_attn.qkv_proj.weight"].shape == (64 + 32 + 32, 64)
    assert table["model.layers.1.mlp.gate_up_proj.weight"].shape == (176, 64)
    assert [table[name].kind for name in list(table)[:3]] == ["embedding", "norm", "linear"]
    assert table["lm_head.weight"].kind == "head"
    tied = llama.parameters(llama.from_architecture({**ARCHITECTURE, "tie_word_embeddings": True}))
    assert tied == tuple(table.values())[:-1]


def test_the_weight_map_is_data_and_complete() -> None:
    found = llama.weight_map(CONFIG, layout())
    (entry,) = [e for e in found.entries if e.name == "model.layers.1.self_attn.qkv_proj.weight"]
    stem = "model.layers.1.self_attn"
    assert weights.entry_json(entry) == {
        "name": f"{stem}.qkv_proj.weight", "shape": [128, 64], "kind": "linear", "op": "stack",
        "sources": [
            {"tensor": f"{stem}.q_proj.weight", "dtype": "F16", "shape": [64, 64], "rows": [0, 64]},
            {"tensor": f"{stem}.k_proj.weight", "dtype": "F16", "shape": [32, 64], "rows": [0, 32]},
            {"tensor": f"{stem}.v_proj.weight", "dtype": "F16", "shape": [32, 64], "rows": [0, 32]},
        ],
    }  # fmt: skip
    assert found.dropped == ()
    assert weights.read_map(json.loads(canonical(weights.map_json(found)))) == found
    assert weights.parameter_count(found.entries) == sum(array.size for _, array in source_tensors().values())


def test_what_the_checkpoint_must_hold() -> None:
    tensors = source_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(UserError, match=r"no tensor '.*\.1\.mlp\.up_proj\.weight' \(expected with shape \[88, 64\]"):
        llama.weight_map(CONFIG, layout(tensors))
    tensors = source_tensors() | {"model.norm.weight": ("F16", np.zeros(65, np.float16))}
    with pytest.raises(UserError, match=r"'model\.norm\.weight' has shape \[65\]; config\.json asks for \[64\]"):
        llama.weight_map(CONFIG, layout(tensors))
    tensors = source_tensors() | {"model.norm.weight": ("I32", np.zeros(64, np.int32))}
    with pytest.raises(UserError, match=r"dtype I32; weights may be F16, BF16, F32, F64"):
        llama.weight_map(CONFIG, layout(tensors))
    tensors = source_tensors() | {"model.layers.0.self_attn.q_proj.bias": ("F16", np.zeros(64, np.float16))}
    with pytest.raises(UserError, match=r"does not use: 'model\.layers\.0\.self_attn\.q_proj\.bias'"):
        llama.weight_map(CONFIG, layout(tensors))


def test_what_may_be_dropped() -> None:
    angles = ("F32", np.zeros(8, np.float32))
    tensors = source_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": angles}
    assert llama.weight_map(CONFIG, layout(tensors)).dropped == ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    tied = llama.from_architecture({**ARCHITECTURE, "tie_word_embeddings": True})
    assert llama.weight_map(tied, layout()).dropped == ("lm_head.weight",)
    with pytest.raises(UserError, match=r"layers\.2\.self_attn\.rotary_emb"):
        llama.weight_map(CONFIG, layout(source_tensors() | {"model.layers.2.self_attn.rotary_emb.inv_freq": angles}))


def test_to_source_is_the_inverse() -> None:
    tensors = {name: array for name, (_, array) in source_tensors().items()}
    found = llama.weight_map(CONFIG, layout())
    arrays = {
        entry.name: np.concatenate([tensors[source.tensor] for source in entry.sources]) for entry in found.entries
    }
    back = weights.to_source(found.entries, arrays)
    assert sorted(back) == sorted(tensors)
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


def test_to_source_of_split_and_transposed_tensors() -> None:
    whole = np.arange(24).reshape(6, 4)
    split = [
        weights.Entry(
            weights.Parameter("even", (4, 4), "linear"),
            "stack",
            (weights.Slice("x", (6, 4), 0, 2), weights.Slice("x", (6, 4), 4, 6)),
        ),
        weights.Entry(weights.Parameter("odd", (2, 4), "linear"), "copy", (weights.Slice("x", (6, 4), 2, 4),)),
        weights.Entry(weights.Parameter("turned", (4, 6), "linear"), "transpose", (weights.whole("y", (6, 4)),)),
    ]
    tensors = {"tensors": {name: {"dtype": "F16", "shape": [6, 4]} for name in "xy"}}
    found = weights.weight_map(split, [], tensors)
    arrays = {"even": whole[[0, 1, 4, 5]], "odd": whole[2:4], "turned": whole.T}
    back = weights.to_source(found.entries, arrays)
    assert np.array_equal(back["x"], whole)
    assert np.array_equal(back["y"], whole)


def test_model_config_has_mlc_names() -> None:
    found = llama.model_config(CONFIG, METADATA)
    assert found["position_embedding_base"] == 10000.0
    assert found["context_window_size"] == 64
    assert found["head_dim"] == 16


def test_a_library_is_made_of_the_parts_that_its_family_names():
    modules = {name: set(family_modules(name)) for name in ("llama", "mixtral", "gemma2")}
    gated = {"llm_build.models.attention", "llm_build.models.gated_mlp", "llm_build.ops.gates"}
    assert modules["llama"] == gated | {"llm_build.ops.norms"}
    assert modules["mixtral"] == {"llm_build.models.attention", "llm_build.models.experts", "llm_build.ops.norms"}
    assert modules["gemma2"] == gated | {"llm_build.ops.gemma"}


def family_modules(name: str) -> tuple[str, ...]:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = {**dict.fromkeys((*names, "vocab_size"), 8), "head_dim": 2, "hidden_activation": "gelu_pytorch_tanh"}
    family = architectures.load(name)
    return family.graph_modules(family.from_hf(sizes))
