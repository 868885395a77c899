"""What is no checkpoint, said in the words that lead on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_build.config.schema import Quant
from llm_build.core.errors import UserError
from llm_build.planner import sources
from llm_build.planner.schemes import imported
from tests.weights.weights_line import run_fetch, source_tensors, write_checkpoint

POINTER = (
    "version https://git-lfs.github.com/spec/v1\n"
    "oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"
)
FIRST = "model-00001-of-00002.safetensors"


def write_over(name: str, text: str) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder

    return change


def dangling(name: str) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to("../blobs/0123")
        return folder

    return change


def only(*files: tuple[str, str]) -> Callable[[Path], Path]:
    def change(folder: Path) -> Path:
        for path in folder.iterdir():
            path.unlink()
        for name, text in files:
            (folder / name).write_text(text)
        return folder

    return change


LORA = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/base"})
CASES: dict[str, tuple[Callable[[Path], Path], str, str]] = {  # what is done, the message, the way out
    "a pointer for weights": (write_over(FIRST, POINTER), rf"{FIRST}: is a git-lfs pointer", "git lfs pull"),
    "a pointer for config.json": (write_over("config.json", POINTER), "config.json: is a git-lfs p", "git lfs pull"),
    "a pointer for the index": (
        write_over("model.safetensors.index.json", POINTER), "index.json: is a git-lfs pointer", "git lfs pull",
    ),
    "a pointer for the tokenizer": (write_over("tokenizer.model", POINTER), "tokenizer.model: is a g", "git lfs pull"),
    "an adapter": (only(("adapter_config.json", LORA)), "adapter of org/base, not a model", "merge_and_unload"),
    "a dangling shard": (dangling(FIRST), rf"{FIRST}: is a link to ../blobs/0123, where nothing is", "cp -rL"),
    "a dangling config.json": (dangling("config.json"), "config.json: is a link to", "cp -rL"),
    "a dangling single file": (
        lambda folder: dangling("model.safetensors")(only(("config.json", "{}"))(folder)), "is a link to", "cp -rL",
    ),
    "GGUF alone": (only(("model-Q4.gguf", "GGUF")), "GGUF files, llama.cpp's own format", "safetensors"),
    "GGUF beside config.json": (
        only(("m.gguf", "GGUF"), ("config.json", "{}")), "found: m.gguf; .*llama.cpp's own", "safetensors",
    ),
    "a GGUF file": (lambda f: only(("m.gguf", ""))(f) / "m.gguf", "is a GGUF file, llama.cpp's", "safetensors files"),
    "a weights file": (lambda folder: folder / FIRST, "is a file, not a folder; a checkpoint is", "/x"),
    "nothing": (lambda folder: folder / "none", "no such folder", "the folder with config.json"),
    "an empty folder": (only(), "has no config.json: not a Hugging Face checkpoint", "transformers checkpoint folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_checkpoint(case: str, tmp_path: Path) -> None:
    change, message, remedy = CASES[case]
    folder = write_checkpoint(tmp_path / "x", source_tensors(), shards=2)
    source = change(folder)
    with pytest.raises(UserError, match=message) as caught:
        sources.locate(str(source), "auto")
    assert remedy in caught.value.hint


def test_a_byte_order_mark_is_read_and_not_passed_on(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "x", source_tensors(), shards=2)
    plain = sources.checkpoint_at("folder", "", folder).config
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text, encoding="utf-8-sig")
    assert sources.checkpoint_at("folder", "", folder).config == plain
    out = run_fetch(folder, tmp_path / "w")
    assert (out.folder / "file" / "config.json").read_text("utf-8") == text


def test_an_adapter_beside_weights_is_mentioned(tmp_path: Path) -> None:
    folder = write_over("adapter_config.json", LORA)(write_checkpoint(tmp_path / "x", source_tensors()))
    out = run_fetch(folder, tmp_path / "w")
    assert [warning for warning in out.warnings if "adapter beside the weights is not applied" in warning]
    assert "file/adapter_config.json" not in out.written


@pytest.mark.parametrize("older", ["quantize_config.json", "compression_config"])
def test_older_descriptions_of_quantization_give_one_answer(older: str, tmp_path: Path) -> None:
    """For every scheme, quant=imported too."""
    folder = write_checkpoint(tmp_path / "x", source_tensors())
    if older.endswith(".json"):
        (folder / older).write_text(json.dumps({"bits": 4, "group_size": 128}))
    else:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, older: {"format": "pack-quantized"}}))
    checkpoint = sources.checkpoint_at("folder", "", folder)
    for quant in (Quant(name="imported", method="imported"), Quant(name="q0f16")):
        with pytest.raises(UserError, match=f"quantized already, as {older} says"):
            imported.check(quant, checkpoint)
