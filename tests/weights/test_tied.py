"""A head beside a tied embedding: a copy is left out, another head is never dropped."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from llm_build import architectures
from llm_build.core.errors import UserError
from llm_build.formats.quantized import describe
from llm_build.steps import convert
from tests.matrix import checkpoints
from tests.weights import quantized_checkpoints
from tests.weights.weights_line import FolderOut, plain_scheme, run_fetch, run_weights

KINDS = ("copy", "other", "noise", "missing")


def head_beside_the_embedding(model_type: str, folder: Path, kind: str) -> tuple[str, str]:
    """A checkpoint whose config.json ties its head; the names of the head and of the embedding."""
    checkpoints.make(model_type, folder, tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    if model_type == "gpt_neox":
        head, embedding = "embed_out.weight", "gpt_neox.embed_in.weight"
    assert head not in tensors
    values, random = tensors[embedding], np.random.default_rng(0)
    if kind == "copy":
        tensors[head] = values.copy()
    if kind == "other":
        tensors[head] = random.normal(0, 0.02, values.shape).astype(values.dtype)
    if kind == "noise":
        tensors[head] = values.copy()
        tensors[head][7, 3] += np.float16(0.01)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return head, embedding


def converted(folder: Path, work: Path, **changes: object) -> FolderOut:
    config = json.loads((folder / "config.json").read_text())
    name = architectures.recognise(config)
    family = architectures.load(name)
    architecture = family.apply_overrides(family.from_hf(config), changes)
    out = FolderOut(work / "convert")
    layout = run_fetch(folder, work).outputs()["layout.json"]
    convert.run({"family": name, "architecture": asdict(architecture)}, {"layout": layout}, out)
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model_type", checkpoints.FAMILIES)
def test_a_tied_head_is_left_out_only_if_it_is_a_copy(model_type: str, kind: str, tmp_path: Path) -> None:
    head, embedding = head_beside_the_embedding(model_type, tmp_path / "source", kind)
    if kind in ("copy", "missing"):
        weight_map = converted(tmp_path / "source", tmp_path / "work").json("weight_map.json")
        assert weight_map["dropped"] == ([head] if kind == "copy" else [])
        return
    with pytest.raises(UserError, match=rf"tie_word_embeddings.*{head}.*{embedding}") as error:
        converted(tmp_path / "source", tmp_path / "work")
    assert "model.tie_word_embeddings=false" in error.value.hint
    weight_map = converted(tmp_path / "source", tmp_path / "again", tie_word_embeddings=False).json("weight_map.json")
    assert weight_map["dropped"] == []
    assert [entry["name"] for entry in weight_map["parameters"]][-1] == head


def test_a_recipe_cannot_tie_what_the_checkpoint_does_not(tmp_path: Path) -> None:
    checkpoints.make("llama", tmp_path / "source", tie_word_embeddings=False)
    with pytest.raises(UserError, match="tie_word_embeddings"):
        converted(tmp_path / "source", tmp_path / "work", tie_word_embeddings=True)


def test_the_references_agree_with_transformers_about_a_head_of_its_own(tmp_path: Path) -> None:
    """transformers unties what differs; so do both references, over config.json as it is."""
    import torch
    import transformers

    from llm_build.steps import dequantized, reference
    from tests.e2e.chain import HELDOUT, Line, sample

    head_beside_the_embedding("llama", tmp_path / "source", "other")
    config = json.loads((tmp_path / "source/config.json").read_text())
    family = architectures.load("llama")
    architecture = asdict(family.apply_overrides(family.from_hf(config), {"tie_word_embeddings": False}))
    scheme = asdict(plain_scheme("q0f16", "float16"))
    line = Line(
        tmp_path, "llama", architecture, scheme, run_weights(tmp_path / "source", tmp_path, architecture, scheme)
    )
    original, stored = line.out("reference", HELDOUT), line.out("dequantized", HELDOUT)
    reference.run(sample(), line.reference_inputs(), original)
    dequantized.run({**sample(), "scheme": scheme, "method": "rtn"}, line.dequantized_inputs(), stored)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "source", dtype=torch.float32)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    with torch.inference_mode():
        expected = model(torch.from_numpy(np.load(original.folder / "tokens.npy")).long()).logits.numpy()
    for out in (original, stored):
        np.testing.assert_allclose(np.load(out.folder / "logits.npy"), expected, rtol=0, atol=1e-5)


def test_a_quantized_head_beside_a_tied_embedding_is_refused(tmp_path: Path) -> None:
    """GPTQ's lm_head.qweight is never the embedding."""
    tensors, _, config = quantized_checkpoints.tiny("gptq_sym")
    del tensors["lm_head.weight"]
    shape = (config["vocab_size"], config["hidden_size"])
    head, _ = quantized_checkpoints.make_gptq(1, True)("lm_head", shape, np.random.default_rng(0))
    config["tie_word_embeddings"] = True
    quantized_checkpoints.put(tmp_path / "source", tensors | head, config)
    layout = run_fetch(tmp_path / "source", tmp_path / "work").outputs()["layout.json"]
    packing = describe(config)
    assert packing is not None
    architecture = asdict(architectures.load("llama").from_hf({**config, "quantization_config": None}))
    params = {"family": "llama", "architecture": architecture, "packing": asdict(packing)}
    with pytest.raises(UserError, match=r"'lm_head\.[a-z_]+' beside 'model\.embed_tokens\.weight'"):
        convert.run(params, {"layout": layout}, FolderOut(tmp_path / "convert"))
