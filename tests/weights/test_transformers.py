"""Checkpoints that transformers wrote, through fetch to package, and back into transformers."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_build import architectures
from llm_build.architectures.weights import read_map, to_source
from llm_build.quant import reference
from llm_build.quant.layout import Scheme, is_quantized
from tests.weights.weights_line import (
    Built,
    group_scheme,
    plain_scheme,
    run_package,
    run_weights,
)

llama = architectures.load("llama")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPES: dict[str, dict[str, Any]] = {
    "grouped, untied": {"num_key_value_heads": 2},
    "tied": {"num_key_value_heads": 4, "tie_word_embeddings": True},
    "biases": {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
    "odd head_dim": {"num_key_value_heads": 2, "head_dim": 24, "intermediate_size": 100},
}


def make(folder: Path, dtype: Any, max_shard: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{
        "hidden_size": 64, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 4,
        "vocab_size": 96, "max_position_embeddings": 64, **changes,
    })  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_shard)
    return model.float()


def dequantized(built: Built, scheme: Scheme) -> dict[str, np.ndarray]:
    stored, arrays = built.arrays(), {}
    entries = read_map(built.convert.json("weight_map.json")).entries
    for parameter in (entry.parameter for entry in entries):
        if is_quantized(parameter, scheme):
            stem = parameter.name.removesuffix(".weight")
            words, scales = stored[f"{stem}.q_weight"], stored[f"{stem}.q_scale"]
            arrays[parameter.name] = reference.dequantize(words, scales, parameter.shape[1], scheme)
        else:
            arrays[parameter.name] = stored[parameter.name].astype(np.float32)
    return to_source(entries, arrays)


def logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        found: np.ndarray = model(torch.arange(3, 40)[None]).logits[0].numpy()
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_there_and_back(tmp_path: Path, shape: str) -> None:
    model = make(tmp_path / "source", torch.float16, "60KB", **SHAPES[shape])
    config = llama.from_hf(json.loads((tmp_path / "source/config.json").read_text()))
    expected = logits(model)

    exact = plain_scheme("q0f32", "float32")
    built = run_weights(tmp_path / "source", tmp_path / "exact", asdict(config), asdict(exact))
    state = {name: torch.from_numpy(array) for name, array in dequantized(built, exact).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert set(missing) <= ({"lm_head.weight"} if config.tie_word_embeddings else set())
    assert not unexpected
    np.testing.assert_array_equal(logits(model), expected)

    scheme = group_scheme("q4f16_1")
    built = run_weights(tmp_path / "source", tmp_path / "packed", asdict(config), asdict(scheme), max_shard_bytes=9000)
    run_package(built, tmp_path / "packed", asdict(config), asdict(scheme))
    state = {name: torch.from_numpy(array) for name, array in dequantized(built, scheme).items()}
    model.load_state_dict(state, strict=False)
    error = np.abs(logits(model) - expected).max() / expected.std()
    assert 0 < error < 1.5, error


def test_bfloat16_and_pickles(tmp_path: Path) -> None:
    model = make(tmp_path / "source", torch.bfloat16, "1GB", num_key_value_heads=2)
    config = llama.from_hf(json.loads((tmp_path / "source/config.json").read_text()))
    scheme = asdict(group_scheme("q4f32_1", dtype="float32"))
    first = run_weights(tmp_path / "source", tmp_path / "one", asdict(config), scheme).arrays()
    (tmp_path / "source/model.safetensors").unlink()
    torch.save(model.bfloat16().state_dict(), tmp_path / "source/pytorch_model.bin")
    second = run_weights(tmp_path / "source", tmp_path / "two", asdict(config), scheme).arrays()
    assert all(np.array_equal(first[name], second[name]) for name in first)
