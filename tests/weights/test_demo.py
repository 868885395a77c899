"""The shipped demo checkpoint is what its model card says."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "builder" / "demo"
CARD = (DEMO / "README.md").read_text(encoding="utf-8")
HELDOUT = (DEMO / "heldout.txt").read_text(encoding="utf-8")
OVERLAP_WORDS = 10


def card_number(label: str) -> float:
    """The first number in the card's table row that begins with `label`."""
    found = re.search(rf"^\| {re.escape(label)}[^|]*\| ([\d,.]*\d)", CARD, re.MULTILINE)
    assert found, f"no row {label!r} in the model card"
    return float(found[1].replace(",", ""))


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9']+", text.lower())


@pytest.fixture(scope="module")
def model():
    return transformers.LlamaForCausalLM.from_pretrained(DEMO, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(DEMO)


def test_shards_hold_the_stated_float16_tensors():
    from safetensors import safe_open

    index = json.loads((DEMO / "model.safetensors.index.json").read_text())
    shapes = {}
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        with safe_open(DEMO / name, "pt") as shard:
            for key in shard.keys():  # noqa: SIM118  (safe_open is no mapping)
                assert index["weight_map"].pop(key) == name
                assert shard.get_slice(key).get_dtype() == "F16"
                shapes[key] = tuple(shard.get_slice(key).get_shape())
    assert not index["weight_map"]
    layer = {
        "input_layernorm": (256,),
        "post_attention_layernorm": (256,),
        "self_attn.q_proj": (256, 256),
        "self_attn.k_proj": (64, 256),
        "self_attn.v_proj": (64, 256),
        "self_attn.o_proj": (256, 256),
        "mlp.gate_proj": (704, 256),
        "mlp.up_proj": (704, 256),
        "mlp.down_proj": (256, 704),
    }
    expected = {f"model.layers.{i}.{name}.weight": shape for i in range(4) for name, shape in layer.items()}
    expected |= {"model.embed_tokens.weight": (3072, 256), "lm_head.weight": (3072, 256), "model.norm.weight": (256,)}
    assert shapes == expected
    assert index["metadata"]["total_size"] == 2 * sum(math.prod(shape) for shape in shapes.values())


def test_folder_is_at_most_ten_megabytes():
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 10_000_000


def test_config_reads_as_the_stated_llama(model, tokenizer):
    config = transformers.AutoConfig.from_pretrained(DEMO)
    assert (config.model_type, config.architectures, str(config.dtype)) == (
        "llama",
        ["LlamaForCausalLM"],
        "torch.float16",
    )
    assert (config.num_key_value_heads, config.head_dim, config.max_position_embeddings) == (2, 32, 1024)
    assert config.rope_parameters["rope_theta"] == 10000
    assert not config.tie_word_embeddings
    assert model.generation_config.eos_token_id == config.eos_token_id == tokenizer.eos_token_id == 1
    assert model.generation_config.bos_token_id == config.bos_token_id == tokenizer.bos_token_id == 0
    assert all(torch.isfinite(value).all() for value in model.parameters())


def test_tokenizer_has_3072_entries_puts_bos_first_and_is_lossless(tokenizer):
    assert len(tokenizer) == 3072
    text = HELDOUT[:20_000] + "  naïve\t€ \U0001f600\r\n\n\n x"
    ids = tokenizer(text).input_ids
    assert (ids[0], ids.count(0), ids.count(1)) == (0, 1, 0)
    assert tokenizer.decode(ids[1:]) == text


def test_heldout_text_is_the_one_in_the_card():
    data = (DEMO / "heldout.txt").read_bytes()
    assert len(data) == card_number("held-out text") >= 50_000
    assert hashlib.sha256(data).hexdigest() in CARD


def test_calibration_text_is_the_one_in_the_card_and_shares_nothing_with_the_heldout_text():
    data = (DEMO / "calibration.txt").read_bytes()
    assert f"{len(data):,}" in CARD
    assert hashlib.sha256(data).hexdigest() in CARD
    runs = {run for paragraph in data.decode().split("\n") for run in runs_of(paragraph)}
    assert runs
    assert not [paragraph for paragraph in HELDOUT.split("\n") if not runs.isdisjoint(runs_of(paragraph))]


def test_heldout_perplexity_is_the_number_in_the_card(model, tokenizer):
    ids = torch.tensor(tokenizer(HELDOUT, add_special_tokens=False, verbose=False).input_ids)
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(ids), 1023):
            piece = ids[start : start + 1023]
            logits = model(torch.cat([torch.tensor([0]), piece])[None]).logits[0, :-1]
            nats -= logits.log_softmax(-1).gather(1, piece[:, None]).sum().item()
    assert math.exp(nats / len(ids)) == pytest.approx(card_number("held-out perplexity per token"), rel=1e-4)
    assert nats / math.log(2) / len(HELDOUT.encode()) == pytest.approx(card_number("held-out bits per byte"), rel=1e-4)


def test_greedy_text_is_made_of_words_of_the_documentation(model, tokenizer):
    known = {word for word in words_of(HELDOUT) if len(word) > 1} | {"a", "i"}
    for prompt in ("The function returns", "If the file does not exist,", "This module provides"):
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        made = model.generate(
            ids, max_new_tokens=40, do_sample=False, temperature=None, top_p=None, pad_token_id=tokenizer.eos_token_id
        )
        text = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        words = words_of(text)
        assert text.isascii()
        assert len(words) >= 15, text
        assert sum(word in known for word in words) >= 0.9 * len(words), text


def test_training_text_shares_no_long_run_of_words_with_the_heldout_text(tmp_path):
    made_with = re.search(r"CPython (\d+\.\d+\.\d+)", CARD)[1]
    if platform.python_version() != made_with:
        pytest.skip(f"the training text is that of CPython {made_with}")
    subprocess.run([sys.executable, str(ROOT / "training" / "prepare.py"), str(tmp_path)], check=True, timeout=300)
    train = (tmp_path / "train.txt").read_text(encoding="utf-8")
    assert len(train) > 1_500_000  # without the test package it is shorter than the card says, and still the text
    runs = {run for paragraph in train.split("\n") for run in runs_of(paragraph)}
    shared = [paragraph for paragraph in HELDOUT.split("\n") if not runs.isdisjoint(runs_of(paragraph))]
    assert not shared
    if hashlib.sha256(train.encode()).hexdigest() in CARD:
        assert (tmp_path / "heldout.txt").read_text(encoding="utf-8") == HELDOUT
        assert (tmp_path / "calibration.txt").read_bytes() == (DEMO / "calibration.txt").read_bytes()


def runs_of(paragraph: str) -> list[str]:
    """The runs of OVERLAP_WORDS words in one paragraph."""
    words = words_of(paragraph)
    return [" ".join(words[i : i + OVERLAP_WORDS]) for i in range(len(words) - OVERLAP_WORDS + 1)]
