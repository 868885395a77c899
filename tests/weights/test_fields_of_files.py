"""The same for the other files of a checkpoint and of an artifact, each field at every depth."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm_build.config.schema import Checkpoint, Quant
from llm_build.formats import quantized
from llm_build.formats.artifact_config import read_chat_config
from llm_build.formats.chat_template import read_template
from llm_build.formats.chatconfig import Texts, chat_config
from llm_build.formats.checkpoint import read_index
from llm_build.formats.generation_config import read_generation_config
from llm_build.formats.tensorcache import read_tensor_cache
from llm_build.formats.tokenizer import TokenizerFiles, assemble, read_files
from llm_build.planner.schemes import imported
from tests.weights.test_fields import WRONG, complaint
from tests.weights.tokenizers_of_kinds import byte_fallback, byte_level

TOKEN = {
    "content": "</s>",
    "lstrip": False,
    "rstrip": False,
    "single_word": False,
    "normalized": False,
    "special": True,
}
TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": {"300": {**TOKEN, "content": "<a>"}},
    "eos_token": TOKEN, "bos_token": "<s>", "additional_special_tokens": ["<b>"], "add_bos_token": True,
    "chat_template": [{"name": "default", "template": "{{ messages[0].content }}"}], "model_max_length": 10,
}  # fmt: skip
GENERATION = {
    "eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": 0, "temperature": 0.7, "top_p": 0.9,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
}  # fmt: skip
QUANTIZED: dict[str, dict[str, Any]] = {
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "gptq": {
        "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False, "dynamic": {"-:x": {}},
        "checkpoint_format": "gptq",
    },
    "compressed-tensors": {
        "quant_method": "compressed-tensors", "format": "int-quantized", "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
                "input_activations": {"num_bits": 8, "type": "int", "dynamic": True, "strategy": "token"},
            }
        },
    },
}  # fmt: skip


def everywhere(value: Any, path: str = "") -> Iterator[tuple[str, Callable[[Any], Any]]]:
    """(path, replace) of every place in a JSON value, the value itself left out."""
    places = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in places:

        def replace(new: Any, key: Any = key) -> Any:
            changed = copy.copy(value)
            changed[key] = new
            return changed

        yield f"{path}.{key}", replace
        for deeper, of in everywhere(inner, f"{path}.{key}"):
            yield deeper, lambda new, replace=replace, of=of: replace(of(new))


def check_all(good: Any, read: Callable[[Any], object], values: list[Any] = WRONG) -> None:
    read(good)
    for path, replace in everywhere(good):
        for value in values:
            complaint(partial(read, replace(value)), (path, value))


def small(tokenizer: Any) -> dict[str, Any]:
    """tokenizer.json with few words, so that every place can be tried."""
    whole = json.loads(tokenizer.to_str())
    model = whole["model"]
    vocab = dict(list(model["vocab"].items())[:3])
    added = [{**TOKEN, "id": 300 + number, "content": f"<{number}>"} for number in range(2)]
    return {**whole, "model": {**model, "vocab": vocab, "merges": model["merges"][:0]}, "added_tokens": added}


def files_of(tmp_path: Path, **texts: Any) -> dict[str, Path]:
    for name, value in texts.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(value, ensure_ascii=True), "utf-8")
    return {f"{name}.json": tmp_path / f"{name}.json" for name in texts}


def write_chat_config(tokenizer: Any, config: Any = {}, generation: Any = {}) -> dict[str, Any]:  # noqa: B006
    sizes = dict.fromkeys(
        ("vocab_size", "context_window_size", "sliding_window_size", "prefill_chunk_size", "attention_sink_size",
         "tensor_parallel_shards", "pipeline_parallel_stages", "max_batch_size"), 1)  # fmt: skip
    texts = Texts(config, generation, TokenizerFiles(tokenizer, config))
    return chat_config(
        family="llama", quantization="q0f32", model_config=sizes, texts=texts, files=(), conv_template="plain"
    )


@pytest.mark.parametrize("kind", [byte_level, byte_fallback])
def test_tokenizer_json(kind: Any, tmp_path: Path):
    """Those of its fields that are read here; the rest is the tokenizers library's, which says what is wrong."""

    def read(value: Any) -> None:
        paths = files_of(tmp_path, tokenizer=value, tokenizer_config={"eos_token": "<eos>"})
        data, _ = assemble(paths)
        write_chat_config(json.loads(data))

    check_all(small(kind()), read, WRONG[::2])


@pytest.mark.parametrize("name", ["tokenizer_config", "special_tokens_map", "added_tokens"])
def test_files_beside_it(name: str, tmp_path: Path):
    good: dict[str, Any] = {"tokenizer_config": TOKENIZER_CONFIG, "added_tokens": {"<x>": 300}}
    good["special_tokens_map"] = {"eos_token": TOKEN, "additional_special_tokens": ["<b>"], "x_token": "<x>"}

    def read(value: Any) -> None:
        files = read_files(files_of(tmp_path, **{name: value}))
        read_template(files, None)

    check_all(good[name], read)


def test_generation_config():
    check_all(GENERATION, lambda value: read_generation_config(value, {}))
    check_all(GENERATION, lambda value: read_generation_config({}, value))


@pytest.mark.parametrize("method", QUANTIZED)
def test_quantization_config(method: str, tmp_path: Path):
    check_all({"quantization_config": QUANTIZED[method]}, quantized.describe)

    def read(config: Any) -> None:
        checkpoint = Checkpoint("folder", "", tmp_path, "safetensors", (), config)
        for quant in (Quant(name="imported", method="imported"), Quant(name="q0f16")):
            message = complaint(lambda quant=quant: imported.check(quant, checkpoint), config)
            assert not message or "quantiz" in message

    check_all({"quantization_config": QUANTIZED[method], "compression_config": {}, "quantization": {"bits": 4}}, read)


def test_index(tmp_path: Path):
    def read(value: Any) -> None:
        (tmp_path / "x.json").write_text(json.dumps(value))
        read_index(tmp_path / "x.json", "x.json")

    check_all({"metadata": {"total_size": 1}, "weight_map": {"a": "x.safetensors", "b": "y.safetensors"}}, read)


def test_tensor_cache():
    record = {"name": "a", "shape": [2], "dtype": "float32", "format": "raw", "nbytes": 8, "byteOffset": 0}
    shard = {"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": 8, "records": [record], "md5sum": ""}
    check_all({"metadata": {}, "records": [shard]}, lambda value: read_tensor_cache(json.dumps(value)))
    assert "tensor-cache.json" in complaint(lambda: read_tensor_cache(b"\xff\xfe"), "no UTF-8")


def test_chat_config_of_an_artifact(tmp_path: Path):
    good = write_chat_config(small(byte_level()), {"eos_token_id": 1}, GENERATION)

    def read(value: Any) -> None:
        (tmp_path / "mlc-chat-config.json").write_text(json.dumps(value))
        read_chat_config(tmp_path / "mlc-chat-config.json")

    check_all(good, read)
