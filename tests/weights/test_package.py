"""The artifact's JSON files say what the format has."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llm_build.core.errors import UserError
from llm_build.formats.chat_template import read_template
from llm_build.formats.chatconfig import Texts, chat_config, tokenizer_info
from llm_build.formats.conversation_template import translate
from llm_build.formats.tokenizer import TokenizerFiles
from llm_build.steps.package import _less_loss
from tests.weights.weights_line import (
    ARCHITECTURE,
    METADATA,
    group_scheme,
    run_fetch,
    run_package,
    run_weights,
    source_tensors,
    write_checkpoint,
)

SCHEME = asdict(group_scheme("q4f16_1"))
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
BYTE_LEVEL: dict[str, Any] = {
    "version": "1.0",
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
    "added_tokens": [{"id": 2, "content": "<s>", **FLAGS}, {"id": 3, "content": "</s>", **FLAGS}],
    "decoder": {"type": "ByteLevel"},
    "post_processor": {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [2], "tokens": ["<s>"]}},
    },
}
SENTENCE_PIECE: dict[str, Any] = {
    "model": {"vocab": [["a", 0.0], ["b", 0.0]]},
    "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace"}]},
    "decoder": {
        "type": "Sequence",
        "decoders": [{"type": "Replace"}, {"type": "ByteFallback"}, {"type": "Fuse"},
                     {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Any:
    work = tmp_path_factory.mktemp("package")
    folder = write_checkpoint(work / "source", source_tensors(), bos_token_id=2, eos_token_id=3)
    (folder / "tokenizer.json").write_text(json.dumps(BYTE_LEVEL))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}", "eos_token": "</s>"}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 1, "eos_token_id": [3, 1]}))
    built = run_weights(folder, work, ARCHITECTURE, SCHEME, max_shard_bytes=6000)
    run_package(built, work, ARCHITECTURE, SCHEME)
    return built


def test_the_folder(packaged: Any) -> None:
    shards = [f"params_shard_{index}.bin" for index in range(len(packaged.quantize))]
    assert sorted(packaged.package.outputs()) == sorted(
        ["tiny.so", "README.md", "mlc-chat-config.json", "tensor-cache.json", "ndarray-cache.json",
         "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", *shards]
    )  # fmt: skip
    assert set(packaged.package.files) >= {"tiny.so", "tokenizer.json", *shards}  # linked, not written


def test_tensor_cache(packaged: Any) -> None:
    cache = packaged.package.json("tensor-cache.json")
    assert cache == packaged.package.json("ndarray-cache.json")
    assert [record["dataPath"] for record in cache["records"]] == [
        f"params_shard_{index}.bin" for index in range(len(packaged.quantize))
    ]
    sizes = [record["nbytes"] for shard in cache["records"] for record in shard["records"]]
    total = packaged.shard.json("parameters.json")["total_parameters"]
    assert cache["metadata"] == {
        "ParamSize": len(sizes), "ParamBytes": sum(sizes), "BitsPerParam": sum(sizes) * 8 / total,
    }  # fmt: skip
    assert 4.5 < cache["metadata"]["BitsPerParam"] < 5.0
    assert set(cache["records"][0]) == {"dataPath", "format", "nbytes", "md5sum", "records"}


def test_chat_config(packaged: Any) -> None:
    config = packaged.package.json("mlc-chat-config.json")
    assert config["version"] == "0.1.0"
    assert (config["model_type"], config["quantization"]) == ("llama", "q4f16_1")
    assert (config["vocab_size"], config["active_vocab_size"]) == (96, 4)
    assert (config["context_window_size"], config["sliding_window_size"]) == (64, -1)
    assert (config["temperature"], config["top_p"], config["repetition_penalty"]) == (0.6, 1.0, 1.0)
    assert (config["bos_token_id"], config["eos_token_id"]) == (2, [3, 1])
    assert "pad_token_id" not in config
    assert config["tokenizer_files"] == ["tokenizer.json", "tokenizer_config.json"]
    assert config["model_config"]["num_key_value_heads"] == 2
    template = config["conv_template"]
    assert (template["name"], template["system_prefix_token_ids"], template["stop_token_ids"]) == ("plain", [2], [3, 1])
    assert template["role_templates"]["user"] == "{user_message}"
    assert "MLC's own format cannot express it" in packaged.package.warnings[0]
    assert "complete plain text" in packaged.package.warnings[0]
    assert (packaged.package.folder / "chat_template.jinja").read_text() == "{{ messages }}"
    assert packaged.package.json("special_tokens_map.json") == {"eos_token": "</s>"}


def test_the_card(packaged: Any) -> None:
    card = (packaged.package.folder / "README.md").read_text()
    assert "build generate" in card
    assert "build.json" in card
    nbytes = packaged.package.json("tensor-cache.json")["metadata"]["ParamBytes"]
    assert f"{nbytes:,} bytes" in card


def test_the_card_of_a_small_model_in_few_bits_says_what_loses_less() -> None:
    params = {"scheme": {"kind": "group", "bits": 4, "dtype": "float16"}, "method": "mse"}
    card = _less_loss(params, 135_000_000)
    assert "Where `kl` is above\n0.05, less is lost with (measured on SmolLM2-135M" in card
    assert "\n- `quant.method=gptq`: the same bytes, 0.5 to 0.77 of the loss\n" in card
    assert "\n- `quant=q8f16_1`: 8 bits, 0.0" in card
    assert _less_loss(params, 1_000_000_000) == ""
    assert _less_loss({**params, "method": "imported"}, 135_000_000) == ""
    for scheme in ({"bits": 8}, {"kind": "none"}, {"zero_point": True}):
        assert _less_loss({**params, "scheme": {**params["scheme"], **scheme}}, 135_000_000) == ""


def test_packaging_twice_gives_the_same_bytes(packaged: Any, tmp_path: Path) -> None:
    first = packaged.package
    second = run_package(packaged, tmp_path, ARCHITECTURE, SCHEME)
    for name in second.written:
        assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()


def test_tokenizer_info() -> None:
    assert tokenizer_info(BYTE_LEVEL) == {
        "token_postproc_method": "byte_level", "prepend_space_in_encode": False, "strip_space_in_decode": False,
    }  # fmt: skip
    assert tokenizer_info(SENTENCE_PIECE) == {
        "token_postproc_method": "byte_fallback", "prepend_space_in_encode": True, "strip_space_in_decode": True,
    }  # fmt: skip


def test_the_checkpoints_chat_template_is_translated() -> None:
    added = [{"id": 7, "content": "<s>"}, {"id": 8, "content": "<|im_end|>"}]
    chatml = (
        "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    named = {"chat_template": [{"name": "default", "template": chatml}], "bos_token": {"content": "<s>"}}
    texts = Texts({}, {"eos_token_id": 3}, TokenizerFiles({**BYTE_LEVEL, "added_tokens": added}, named))
    template = read_template(texts.tokenizer, None)
    assert template is not None
    common = {"family": "llama", "quantization": "q0f32", "texts": texts, "files": []}
    config = chat_config(
        model_config={**METADATA, "vocab_size": 9, "pipeline_parallel_stages": 1},
        conv_template=translate(template),
        **common,
    )
    conv = config["conv_template"]
    assert (conv["name"], conv["system_prefix_token_ids"], conv["stop_token_ids"]) == ("checkpoint", [7], [3, 8])
    assert conv["roles"] == {"user": "<|im_start|>user\n", "assistant": "<|im_start|>assistant\n"}


def test_conv_templates() -> None:
    sizes = dict.fromkeys(
        ("vocab_size", "context_window_size", "sliding_window_size", "prefill_chunk_size", "attention_sink_size",
         "tensor_parallel_shards", "pipeline_parallel_stages", "max_batch_size"), 64
    )  # fmt: skip

    def made(template: str, texts: Texts) -> dict[str, Any]:
        return chat_config(
            family="llama", quantization="q0f32", model_config=sizes, texts=texts, files=[], conv_template=template
        )

    bare = Texts({}, {}, TokenizerFiles())
    assert made("plain", bare)["conv_template"]["stop_token_ids"] == []
    assert made("chatml", bare)["conv_template"]["roles"]["user"] == "<|im_start|>user"
    with_bos = Texts({"bos_token_id": 1}, {}, TokenizerFiles({}, {"add_bos_token": True}))
    assert made("plain", with_bos)["conv_template"]["system_prefix_token_ids"] == [1]
    with pytest.raises(UserError, match=r"model\.conv_template: found 'vicuna'; allowed: plain, chatml"):
        made("vicuna", bare)


def _config_of(texts: Texts) -> dict[str, Any]:
    sizes = dict.fromkeys(
        ("vocab_size", "context_window_size", "sliding_window_size", "prefill_chunk_size", "attention_sink_size",
         "tensor_parallel_shards", "pipeline_parallel_stages", "max_batch_size"), 64
    )  # fmt: skip
    return chat_config(
        family="llama", quantization="q0f32", model_config=sizes, texts=texts, files=[], conv_template="plain"
    )


ENDS = [  # (generation_config.json, config.json, the tokenizer's EOS, what ends a text)
    ({"eos_token_id": 1}, {}, None, [1]),
    ({"eos_token_id": [3, 1]}, {"eos_token_id": 3}, "</s>", [3, 1]),
    ({"eos_token_id": 1}, {"eos_token_id": 0}, "</s>", [1, 0, 3]),
    ({}, {}, "</s>", [3]),
    ({}, {}, {"content": "</s>"}, [3]),
    ({}, {"eos_token_id": None}, "a", [0]),
    ({}, {}, "not a token", []),
    ({}, {"eos_token_id": -1}, None, []),
]


@pytest.mark.parametrize(("generation", "config", "named", "ends"), ENDS)
def test_a_text_ends_at_every_end_token_that_any_file_names(
    generation: dict[str, Any], config: dict[str, Any], named: Any, ends: list[int]
) -> None:
    made = _config_of(Texts(config, generation, TokenizerFiles(BYTE_LEVEL, {"eos_token": named})))
    assert made["conv_template"]["stop_token_ids"] == ends
    assert made.get("eos_token_id", []) == (ends[0] if len(ends) == 1 else ends)


def test_named_tokens_of_special_tokens_map_alone_reach_the_template() -> None:
    """Llama 2's make: the beginning before each question, the end after each answer."""
    source = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    )
    named = {"bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    files = TokenizerFiles(BYTE_LEVEL, {"chat_template": source}, {}, named)
    template = read_template(files, None)
    assert template is not None
    conv = chat_config(
        family="llama", quantization="q0f32", texts=Texts({}, {}, files), files=[],
        model_config={**METADATA, "vocab_size": 9, "pipeline_parallel_stages": 1}, conv_template=translate(template),
    )["conv_template"]  # fmt: skip
    assert (conv["seps"], conv["stop_token_ids"]) == ([" [/INST]", "</s>"], [3])
    assert conv["roles"]["user"] + conv["role_content_sep"] == "<s>[INST] "


def test_without_a_decoder_the_pre_tokenizer_says_how_tokens_are_written() -> None:
    whole = {**BYTE_LEVEL, "decoder": None, "pre_tokenizer": {"type": "ByteLevel"}}
    assert tokenizer_info(whole)["token_postproc_method"] == "byte_level"
    assert tokenizer_info({})["token_postproc_method"] == "byte_fallback"


TYPES = [
    ("generation_config.json", "eos_token_id", "1", "a token id, or a list of token ids"),
    ("generation_config.json", "eos_token_id", 1.0, "a token id"),
    ("generation_config.json", "eos_token_id", True, "a token id"),
    ("generation_config.json", "eos_token_id", [[1], 2], "a token id"),
    ("generation_config.json", "eos_token_id", [None], "a token id"),
    ("generation_config.json", "bos_token_id", [1, 2], "one token id"),
    ("generation_config.json", "pad_token_id", {}, "a token id"),
    ("generation_config.json", "temperature", float("inf"), "a number from 0 to 100"),
    ("generation_config.json", "temperature", float("nan"), "a number from 0 to 100"),
    ("generation_config.json", "temperature", [1], "a number from 0 to 100"),
    ("generation_config.json", "temperature", "0.7", "a number from 0 to 100"),
    ("generation_config.json", "top_p", 1.5, "a number from 0 to 1"),
    ("generation_config.json", "repetition_penalty", True, "a number from 0 to 100"),
    ("generation_config.json", "presence_penalty", -3, "a number from -2 to 2"),
    ("config.json", "eos_token_id", "1", "a token id"),
    ("config.json", "bos_token_id", 1 << 40, "a token id"),
]


@pytest.mark.parametrize(("file", "key", "value", "allowed"), TYPES)
def test_fetch_refuses_a_field_of_another_type(file: str, key: str, value: Any, allowed: str, tmp_path: Path) -> None:
    own = {key: value} if file == "config.json" else {}
    folder = write_checkpoint(tmp_path / "source", source_tensors(), **own)
    if file != "config.json":
        (folder / file).write_text(json.dumps({key: value}))
    with pytest.raises(UserError) as error:
        run_fetch(folder, tmp_path)
    assert error.value.message.startswith(f"{file}: {key} is ")
    assert f"allowed: {allowed}" in error.value.message


ACCENT = "{{ 'é' }}"
TEMPLATES = {
    "latin-1": ACCENT.encode("latin-1"),
    "a mark": ACCENT.encode("utf-8-sig"),
    "utf-16": ACCENT.encode("utf-16"),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_in_other_encodings_are_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / "chat_template.jinja"
    path.write_bytes(TEMPLATES[name])
    template = read_template(TokenizerFiles(), path)
    assert template is not None
    assert template.source == ACCENT


@pytest.mark.parametrize("value", [3, ["x"], [{"name": "default"}], {"default": 3}])
def test_a_template_of_another_type_is_refused(value: Any) -> None:
    with pytest.raises(UserError, match=r"tokenizer_config\.json: chat_template.* allowed: "):
        read_template(TokenizerFiles({}, {"chat_template": value}), None)


@pytest.mark.parametrize("value", ["x", [{"name": "default", "template": "x"}], {"tool_use": "y", "default": "x"}])
def test_a_template_is_read_in_each_form_that_transformers_takes(value: Any) -> None:
    template = read_template(TokenizerFiles({}, {"chat_template": value}), None)
    assert template is not None
    assert template.source == "x"
