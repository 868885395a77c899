"""Which files make up a checkpoint, and what an index may say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from llm_build.core.errors import UserError
from llm_build.formats import checkpoint
from tests.weights.quantized_checkpoints import TINY
from tests.weights.weights_line import run_fetch, run_weights, source_tensors, write_checkpoint, write_tensors


def rewrite_index(folder: Path, change: dict[str, object]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] |= change
    path.write_text(json.dumps(index))


def test_single_and_sharded(tmp_path: Path) -> None:
    single = write_checkpoint(tmp_path / "one", source_tensors())
    (single / "tokenizer.json").write_text("{}")
    (single / "notes.txt").write_text("not part of it")
    assert checkpoint.find(single) == checkpoint.Checkpoint(
        "safetensors", ("model.safetensors",), ("config.json", "tokenizer.json")
    )
    sharded = checkpoint.find(write_checkpoint(tmp_path / "two", source_tensors(), shards=2))
    assert sharded.weights == (
        "model.safetensors.index.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
    )


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a folder"):
        checkpoint.find(tmp_path / "none")
    with pytest.raises(UserError, match=r"no config\.json"):
        checkpoint.find(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(UserError, match=r"no weights; found: model\.gguf; allowed: model\.safetensors"):
        checkpoint.find(tmp_path)


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", "a\\b.safetensors", 3]
)
def test_an_index_may_not_leave_the_folder(tmp_path: Path, name: object) -> None:
    folder = write_checkpoint(tmp_path / "x", source_tensors(), shards=2)
    rewrite_index(folder, {"model.norm.weight": name})
    with pytest.raises(UserError, match="outside the folder"):
        checkpoint.find(folder)


def test_an_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "x", source_tensors(), shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"names model-00002-of-00002\.safetensors, which is not in"):
        checkpoint.find(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": 3}', "\udcff"])
def test_an_index_without_sense(tmp_path: Path, text: str) -> None:
    folder = write_checkpoint(tmp_path / "x", source_tensors(), shards=2)
    (folder / "model.safetensors.index.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        checkpoint.find(folder)


def test_an_index_that_disagrees_with_its_files(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "y", source_tensors(), shards=2)
    rewrite_index(folder, {"model.embed_tokens.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(UserError, match=r"it is in model-00001-of-00002\.safetensors"):
        run_fetch(folder, tmp_path / "w")
    folder = write_checkpoint(tmp_path / "z", source_tensors(), shards=2)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]["model.norm.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"'model\.norm\.weight', which the index does not list"):
        run_fetch(folder, tmp_path / "w")


def test_an_index_may_list_a_tensor_that_no_file_has(tmp_path: Path) -> None:
    """As conversion scripts leave shared tensors in it: a note, and the tensors are those of the files."""
    folder = write_checkpoint(tmp_path / "x", source_tensors(), shards=2)
    rewrite_index(folder, {"model.ghost.weight": "model-00001-of-00002.safetensors"})
    out = run_fetch(folder, tmp_path / "w")
    assert [warning for warning in out.warnings if "lists model.ghost.weight, which no file has" in warning]
    assert set(out.json("layout.json")["tensors"]) == set(source_tensors())


def test_a_tensor_that_the_index_lists_and_the_model_needs_is_missed(tmp_path: Path) -> None:
    tensors = source_tensors()
    del tensors["model.norm.weight"]
    folder = write_checkpoint(tmp_path / "x", tensors, shards=2)
    rewrite_index(folder, {"model.norm.weight": "model-00002-of-00002.safetensors"})
    with pytest.raises(UserError, match=r"the checkpoint has no tensor 'model\.norm\.weight'"):
        run_weights(
            folder,
            tmp_path / "w",
            {**TINY, "intermediate_size": 88},
            {"name": "q0f16", "kind": "none", "dtype": "float16"},
        )


def test_one_tensor_in_two_files(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "x", source_tensors(), shards=2)
    second = folder / "model-00002-of-00002.safetensors"
    write_tensors(second, {"model.embed_tokens.weight": ("F16", np.zeros((2, 2), np.float16))})
    with pytest.raises(UserError, match=r"'model\.embed_tokens\.weight' is in both"):
        run_fetch(folder, tmp_path / "w")
