"""One tokenizer.json, put together from the files that transformers puts it together from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from llm_build.core.errors import UserError
from llm_build.formats.tokenizer import assemble
from tests.weights.tokenizers_of_kinds import byte_fallback, byte_level, write

CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
START, END = "<|im_start|>", "<|im_end|>"
TEXTS = (
    f"{START}user\nWhy so?{END}\n",
    "Once upon a time, Käse 世界 \U0001f600",
    "</s><s> x <pad> <tool>",
    "",
    " a  b\n\n c",
)


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {"content": content, **plain, **flags}


FILES: dict[str, dict[str, Any]] = {
    "tokenizer.json alone": {},
    "added_tokens.json": {"added_tokens": {START: 300, END: 301}, "tokenizer_config": CLASS},
    "added_tokens.json, one of them named": {
        "added_tokens": {END: 301, START: 300},
        "tokenizer_config": {**CLASS, "eos_token": END},
    },
    "added_tokens_decoder": {
        "tokenizer_config": {**CLASS, "added_tokens_decoder": {"300": token(START), "301": token(END)}}
    },
    "added_tokens_decoder with flags": {
        "tokenizer_config": {
            **CLASS,
            "added_tokens_decoder": {"300": token(START, rstrip=True), "301": token(END, special=False)},
            "eos_token": END,
        }
    },
    "special_tokens_map.json": {
        "special_tokens_map": {"bos_token": "<s>", "eos_token": token(END), "additional_special_tokens": [START]},
        "tokenizer_config": CLASS,
    },
    "special_tokens_map.json beside a decoder": {
        "special_tokens_map": {"eos_token": END},
        "tokenizer_config": {**CLASS, "added_tokens_decoder": {"300": token(START)}},
    },
    "named in tokenizer_config.json": {"tokenizer_config": {**CLASS, "eos_token": END, "pad_token": "<pad>"}},
    "additional_special_tokens": {"tokenizer_config": {**CLASS, "additional_special_tokens": [START, END]}},
    "extra_special_tokens by name": {"tokenizer_config": {**CLASS, "extra_special_tokens": {"tool_token": "<tool>"}}},
    "a token of the model's own": {"tokenizer_config": {**CLASS, "tool_token": "<tool>"}},
    "a gap in the ids": {"added_tokens": {START: 310, END: 320}, "tokenizer_config": CLASS},
    "a word of the vocabulary": {"tokenizer_config": {**CLASS, "eos_token": "a"}},
}


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
@pytest.mark.parametrize("name", FILES)
def test_ids_are_those_of_transformers(name: str, kind: Any, tmp_path: Path):
    from transformers import AutoTokenizer

    paths = write(tmp_path, kind(), **FILES[name])
    data, warnings = assemble(paths)
    ours, theirs = Tokenizer.from_str(data.decode()), AutoTokenizer.from_pretrained(tmp_path)
    assert ours.get_vocab() == theirs.get_vocab()
    for text in TEXTS:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        ids = ours.encode(text).ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True), text
    assert warnings == []


def test_a_whole_tokenizer_is_shipped_as_it_is(tmp_path: Path):
    paths = write(tmp_path, byte_level(), tokenizer_config={**CLASS, "eos_token": "</s>", "bos_token": token("<s>")})
    assert assemble(paths)[0] == paths["tokenizer.json"].read_bytes()


def test_padding_and_truncation_are_left_out(tmp_path: Path):
    tokenizer = byte_level()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64, pad_token="</s>", pad_id=1)
    data, _ = assemble(write(tmp_path, tokenizer))
    text = "Once upon a time there was a small house. " * 4
    tokenizer.no_padding()
    tokenizer.no_truncation()
    assert Tokenizer.from_str(data.decode()).encode(text).ids == tokenizer.encode(text).ids
    assert Tokenizer.from_str(data.decode()).encode("a").ids == tokenizer.encode("a").ids


@pytest.mark.parametrize("config", [{"tokenizer_class": "GPT2Tokenizer"}, {"tokenizer_class": "Qwen2Tokenizer"}])
def test_vocab_and_merges_become_what_transformers_makes_of_them(config: dict[str, Any], tmp_path: Path):
    from transformers import AutoTokenizer

    model = json.loads(byte_level().to_str())["model"]
    paths = write(tmp_path, None, vocab=model["vocab"], tokenizer_config={**config, "eos_token": "</s>"})
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    data, warnings = assemble({**paths, "merges.txt": tmp_path / "merges.txt"})
    ours, theirs = Tokenizer.from_str(data.decode()), AutoTokenizer.from_pretrained(tmp_path)
    assert [ours.encode(text).ids for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]
    assert json.loads(data)["decoder"]["type"] == "ByteLevel"
    assert warnings == []


def test_a_class_that_transformers_does_not_have_is_read_as_byte_level(tmp_path: Path):
    model = json.loads(byte_level().to_str())["model"]
    paths = write(tmp_path, None, vocab=model["vocab"], config={"model_type": "no-such-model"})
    (tmp_path / "merges.txt").write_text("not\n")
    with pytest.raises(UserError, match=r"vocab\.json, merges\.txt"):
        assemble({**paths, "merges.txt": tmp_path / "merges.txt"})
    (tmp_path / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    data, warnings = assemble({**paths, "merges.txt": tmp_path / "merges.txt"})
    assert Tokenizer.from_str(data.decode()).decode(Tokenizer.from_str(data.decode()).encode("Käse").ids) == "Käse"
    assert "read as GPT-2's byte-level BPE" in warnings[0]


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        (
            "tokenizer",
            {"added_tokens": [{"content": "x"}]},
            r"tokenizer\.json: added_tokens\[0\] is .*; allowed: a token",
        ),
        ("tokenizer", {"added_tokens": 3}, r"tokenizer\.json: added_tokens is 3; allowed: a list"),
        ("tokenizer", {"model": []}, r"tokenizer\.json: model is \[\]; allowed: an object"),
        ("tokenizer", {"model": {"vocab": {"a": "1"}}}, r"model\.vocab\.a is \"1\"; allowed: a token id"),
        ("tokenizer_config", {"eos_token": 3}, r"tokenizer_config\.json: eos_token is 3; allowed: a string"),
        ("tokenizer_config", {"eos_token": {"content": 3}}, r"eos_token is .*; allowed: a string"),
        ("tokenizer_config", {"eos_token": token("x", special=1)}, r"eos_token\.special is 1; allowed: true or false"),  # type: ignore[arg-type]
        ("tokenizer_config", {"added_tokens_decoder": []}, r"added_tokens_decoder is \[\]; allowed: an object"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": token("x")}}, r"added_tokens_decoder is .*decimal"),
        ("tokenizer_config", {"added_tokens_decoder": {"3": 1}}, r"added_tokens_decoder\.3 is 1; allowed"),
        (
            "tokenizer_config",
            {"additional_special_tokens": "x"},
            r"additional_special_tokens is \"x\"; allowed: a list",
        ),
        ("added_tokens", {"x": "3"}, r"added_tokens\.json: 'x' is \"3\"; allowed: a token id"),
        ("added_tokens", {"x": True}, r"added_tokens\.json: 'x' is true; allowed: a token id"),
        ("special_tokens_map", {"bos_token": [1]}, r"special_tokens_map\.json: bos_token is \[1\]; allowed"),
    ],
)
def test_a_field_of_another_type_is_refused(file: str, value: Any, message: str, tmp_path: Path):
    paths = write(tmp_path, byte_level())
    (tmp_path / f"{file}.json").write_text(json.dumps(value))
    with pytest.raises(UserError, match=message):
        assemble({**paths, f"{file}.json": tmp_path / f"{file}.json"})
