"""The two references against plain transformers, and the comparison of weights against sabotage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from llm_build.core.errors import UserError
from llm_build.core.step_io import File
from llm_build.formats import safetensors
from llm_build.steps import dequantized, reference
from llm_build.verification import heldout, source_model
from tests.e2e.chain import DEMO, HELDOUT, Line, line, sample, stored_array
from tests.matrix import checkpoints
from tests.weights.weights_line import FolderOut, hf_config


@pytest.fixture(scope="module")
def q4(tmp_path_factory: pytest.TempPathFactory) -> Line:
    return line(DEMO, "q4f16_1", tmp_path_factory.mktemp("q4"))


def run_dequantized(made: Line, name: str) -> FolderOut:
    out = made.out(name)
    dequantized.run({**sample(), "scheme": made.scheme, "method": "rtn"}, made.dequantized_inputs(), out)
    return out


def transformers_logits(folder: Path, tokens: np.ndarray) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.inference_mode():
        return model(torch.from_numpy(tokens).long()).logits.numpy()


def test_original_is_transformers_on_the_checkpoint(q4: Line):
    out = q4.out("reference")
    reference.run(sample(), q4.reference_inputs(), out)
    tokens = np.load(out.folder / "tokens.npy")
    assert (tokens.shape, tokens.dtype) == ((2, 64), np.int32)
    assert (tokens[:, 0] == json.loads((DEMO / "config.json").read_text())["bos_token_id"]).all()
    logits = np.load(out.folder / "logits.npy")
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, transformers_logits(DEMO, tokens), rtol=0, atol=1e-5)
    assert out.steps[-1][0] == out.steps[-1][1] > 10
    log_p = torch.log_softmax(torch.from_numpy(logits[:, :-1]).double(), -1)
    loss = -log_p.gather(-1, torch.from_numpy(tokens[:, 1:, None]).long()).mean()
    assert out.facts["perplexity"] == pytest.approx(float(loss.exp()), rel=1e-4)


def test_dequantized_is_transformers_on_the_stored_weights(q4: Line, tmp_path: Path):
    """Equal to a model whose weights were replaced one by one with the rounding rule, written here in torch."""
    out = run_dequantized(q4, "dequantized")
    model = transformers.AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager")
    for weight in model.parameters():
        if weight.ndim == 2:
            groups = weight.data.reshape(weight.shape[0], -1, 32)
            scale = (groups.abs().amax(-1, keepdim=True) / 7).half().float()
            weight.data = (((groups / scale + 7).round().clamp(0, 14) - 7) * scale).reshape(weight.shape)
    model.save_pretrained(tmp_path)
    logits = np.load(out.folder / "logits.npy")
    expected = transformers_logits(tmp_path, np.load(out.folder / "tokens.npy"))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5)
    found = json.loads((out.folder / "reconstruction.json").read_text())
    assert found["wrong"] == []
    parameters = json.loads((q4.folder / "convert" / "weight_map.json").read_text())["parameters"]
    assert set(found["rms_error"]) == {parameter["name"] for parameter in parameters}


@pytest.mark.parametrize("scheme", ["q0f16", "q0f32"])
def test_without_rounding_both_references_are_equal(scheme: str, tmp_path: Path):
    made = line(DEMO, scheme, tmp_path)
    original = made.out("reference")
    reference.run(sample(), made.reference_inputs(), original)
    stored = run_dequantized(made, "dequantized")
    np.testing.assert_array_equal(np.load(original.folder / "logits.npy"), np.load(stored.folder / "logits.npy"))
    assert json.loads((stored.folder / "reconstruction.json").read_text())["wrong"] == []


def shard_files(made: Line) -> dict[str, File]:
    return {file.path.name: file for file in made.shards().values()}


def swap_heads(made: Line) -> tuple[str, int]:
    """Heads 0 and 3 of layer 2's queries, in the packed bytes."""
    for piece in ("q_weight", "q_scale"):
        rows = stored_array(made, f"model.layers.2.self_attn.qkv_proj.{piece}", shard_files(made))
        rows[:32], rows[96:128] = rows[96:128].copy(), rows[:32].copy()
    return "model.layers.2.self_attn.qkv_proj.weight", 128


def one_scale(made: Line) -> tuple[str, int]:
    """One group of 32 weights out of 5,632 of this matrix: 5% too large."""
    stored_array(made, "model.layers.1.mlp.down_proj.q_scale", shard_files(made))[17, 3] *= np.float16(1.05)
    return "model.layers.1.mlp.down_proj.weight", 18


def one_weight(made: Line) -> tuple[str, int]:
    """One nibble, one step away."""
    stored_array(made, "lm_head.q_weight", shard_files(made))[5, 9] ^= np.uint32(1 << 12)
    return "lm_head.weight", 6


def one_norm(made: Line) -> tuple[str, int]:
    """One unit in the last place of one norm weight."""
    stored_array(made, "model.norm.weight", shard_files(made)).view(np.uint16)[7] ^= 1
    return "model.norm.weight", 8


@pytest.mark.parametrize("sabotage", [swap_heads, one_scale, one_weight, one_norm])
def test_comparing_weights_finds_sabotage(sabotage, tmp_path: Path):
    made = line(DEMO, "q4f16_1", tmp_path)
    name, end = sabotage(made)
    out = run_dequantized(made, "dequantized")
    (wrong,) = json.loads((out.folder / "reconstruction.json").read_text())["wrong"]
    assert wrong["parameter"] == name
    assert wrong["row"] < end
    assert max(wrong["steps"], wrong["scale_ulps"]) > 0.51


TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 128}
FAMILIES = {
    "llama tied": transformers.LlamaConfig(**TINY, num_key_value_heads=2, tie_word_embeddings=True),
    "gpt_neox renames": transformers.GPTNeoXConfig(**TINY),
    "gemma3 local rope": transformers.Gemma3TextConfig(**TINY, head_dim=16, num_key_value_heads=2, sliding_window=16),
    "mixtral fuses": transformers.MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=4),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_kind_of_loading_equals_transformers(family: str, dtype: torch.dtype, tmp_path: Path):
    """Streamed, renamed, tied, or fused by transformers while loading: the logits are those of the plain model."""
    torch.manual_seed(3)
    config = FAMILIES[family]
    transformers.AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    located = {tensor.name: tensor for tensor in safetensors.read_header(file, file.name)}

    def fetch(name: str) -> torch.Tensor:
        tensor = located[name]
        return source_model.read(File(file, "", tensor.nbytes, tensor.offset), tensor.dtype, list(tensor.shape))

    raw = json.loads((tmp_path / "config.json").read_text())
    shapes = {name: list(tensor.shape) for name, tensor in located.items()}
    model = source_model.load(raw, shapes, fetch, lambda done, total: None)
    tokens = np.random.default_rng(0).integers(0, 128, (2, 40), np.int32)
    found = source_model.logits(model, tokens, 2)
    np.testing.assert_allclose(found, transformers_logits(tmp_path, tokens), rtol=0, atol=1e-6)


def test_a_missing_tensor_is_named():
    config = hf_config(architectures=["LlamaForCausalLM"])
    with pytest.raises(UserError, match=r"missing keys.*lm_head\.weight"):
        source_model.load(config, {"model.norm.weight": [64]}, lambda name: torch.zeros(64), lambda done, total: None)


def test_an_unknown_class_is_refused():
    with pytest.raises(UserError, match="LlamaForSecrets"):
        source_model.load(hf_config(architectures=["LlamaForSecrets"]), {}, torch.zeros, lambda done, total: None)


def test_nan_in_the_checkpoint_is_red(tmp_path: Path):
    made = line(DEMO, "q0f16", tmp_path)
    inputs = made.reference_inputs()
    bad = tmp_path / "bad.bin"
    np.full(256, np.nan, np.float16).tofile(bad)
    inputs["tensors"] = {**inputs["tensors"], "tensor/model.norm.weight": File(bad, "", 512)}
    with pytest.raises(Exception, match="NaN or infinity, first in window 0 at position 0"):
        reference.run(sample(), inputs, made.out("reference"))


def test_a_file_that_became_shorter_is_a_clear_error(tmp_path: Path):
    (tmp_path / "x").write_bytes(bytes(10))
    with pytest.raises(UserError, match="6 bytes early"):
        source_model.read(File(tmp_path / "x", "", 16), "F16", [8])


def windows(text: Path, **changes: int) -> np.ndarray:
    config = json.loads((DEMO / "config.json").read_text())
    tokenizer = File(DEMO / "tokenizer.json", "", 0)
    return heldout.windows({**sample(text), **changes}, text, tokenizer, config)


def test_windows_are_spread_over_the_text_and_bounded():
    assert windows(HELDOUT, tokens=512, window=256).shape == (2, 256)
    assert windows(HELDOUT, tokens=512, window=100).shape == (5, 100)
    assert windows(HELDOUT, tokens=512, window=256, logits_bytes=4 * 3072 * 80).shape == (2, 40)
    ends = windows(HELDOUT, tokens=4096, window=256)
    assert len({tuple(row) for row in ends}) == 16


def test_bad_texts_are_refused(tmp_path: Path):
    text = tmp_path / "mine.txt"
    text.write_text("too short")
    with pytest.raises(UserError, match=r"mine\.txt has \d+ tokens; two windows of 64"):
        windows(text)
    text.write_bytes(b"\xff\xfe" + bytes(5000))
    with pytest.raises(UserError, match="not UTF-8"):
        windows(text)
    params = sample(text)
    text.write_text("something else")
    with pytest.raises(UserError, match="changed while the build ran"):
        heldout.windows(params, text, File(DEMO / "tokenizer.json", "", 0), hf_config(vocab_size=3072))
    with pytest.raises(UserError, match="needs two windows"):
        windows(HELDOUT, tokens=8)


def test_without_a_tokenizer_random_ids_serve_and_a_warning_says_so(tmp_path: Path):
    made = line(DEMO, "q0f16", tmp_path)
    inputs = made.reference_inputs()
    del inputs["tokenizer"]
    out = made.out("reference")
    reference.run(sample(), inputs, out)
    assert np.load(out.folder / "tokens.npy").shape == (2, 64)
    assert "no tokenizer.json" in out.warnings[0]


def old_buffers(config: dict[str, Any]) -> dict[str, torch.Tensor]:
    """What older versions of transformers saved beside the weights, by model_type."""
    length, width = config["max_position_embeddings"], config["hidden_size"] // config["num_attention_heads"]
    angles = torch.rand(width // 2)
    layers = range(config["num_hidden_layers"])
    if config["model_type"] != "gpt_neox":
        per_layer = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": angles.clone() for layer in layers}
        return per_layer | {"model.rotary_emb.inv_freq": angles}
    causal = torch.ones(1, 1, length, length).tril()
    buffers = {}
    for layer in layers:
        stem = f"gpt_neox.layers.{layer}.attention"
        buffers[f"{stem}.bias"] = causal.to((torch.bool, torch.uint8)[layer % 2])
        buffers[f"{stem}.masked_bias"] = torch.tensor(-1e9 if layer % 2 else -1e4, dtype=torch.float32)  # no dimension
        buffers[f"{stem}.rotary_emb.inv_freq"] = angles.clone()
    return buffers


@pytest.mark.parametrize("model_type", checkpoints.FAMILIES)
def test_buffers_that_transformers_ignores_change_nothing(model_type: str, tmp_path: Path):
    folder = checkpoints.make(model_type, tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    tensors, buffers = load_file(folder / "model.safetensors"), old_buffers(config)
    save_file(tensors | buffers, folder / "model.safetensors", {"format": "pt"})
    made = line(folder, "q0f32", tmp_path / "line")
    assert made.built.convert.json("weight_map.json")["dropped"] == sorted(buffers)
    original = made.out("reference")
    reference.run(sample(), made.reference_inputs(), original)
    stored = run_dequantized(made, "dequantized")
    tokens = np.load(original.folder / "tokens.npy")
    expected = transformers_logits(folder, tokens)
    for out in (original, stored):
        np.testing.assert_allclose(np.load(out.folder / "logits.npy"), expected, rtol=0, atol=1e-5)
