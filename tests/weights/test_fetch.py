"""fetch names the content of every tensor, wherever it lies."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from builder.core.errors import UserError
from tests.weights.weights_line import FolderOut, run_fetch, source_tensors, write_checkpoint


def slices(out: FolderOut) -> dict[str, str]:
    return {name: file.digest for name, file in out.files.items()}


def test_digests_are_those_of_the_bytes(tmp_path: Path) -> None:
    tensors = source_tensors()
    out = run_fetch(write_checkpoint(tmp_path / "x", tensors, shards=3), tmp_path / "w")
    assert sorted(out.files) == sorted(f"tensor/{name}" for name in tensors)
    for name, (_, array) in tensors.items():
        file = out.files[f"tensor/{name}"]
        assert file.digest == f"blake3:{blake3(array.tobytes()).hexdigest()}"
        assert file.path.read_bytes()[file.offset : file.offset + file.nbytes] == array.tobytes()
    assert out.steps[-1][0] == out.steps[-1][1] == out.facts["source_bytes"]


def test_sharding_threads_and_place_change_nothing(tmp_path: Path) -> None:
    one = run_fetch(write_checkpoint(tmp_path / "x", source_tensors()), tmp_path / "w1", threads=1)
    two = run_fetch(write_checkpoint(tmp_path / "y", source_tensors(), shards=4), tmp_path / "w2", threads=3)
    assert slices(one) == slices(two)
    assert (one.folder / "layout.json").read_bytes() == (two.folder / "layout.json").read_bytes()
    assert one.json("layout.json")["tensors"]["lm_head.weight"] == {"dtype": "F16", "shape": [96, 64]}


def test_one_changed_weight_changes_one_digest(tmp_path: Path) -> None:
    tensors = source_tensors()
    before = slices(run_fetch(write_checkpoint(tmp_path / "x", tensors), tmp_path / "w1"))
    tensors["model.layers.1.mlp.up_proj.weight"][1][5, 5] += 1
    after = slices(run_fetch(write_checkpoint(tmp_path / "y", tensors), tmp_path / "w2"))
    assert [name for name in before if before[name] != after[name]] == ["tensor/model.layers.1.mlp.up_proj.weight"]


def test_only_files_that_changed_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.core.memo.RACY_NS", -(10**18))
    folder = write_checkpoint(tmp_path / "x", source_tensors(), shards=3)
    first = run_fetch(folder, tmp_path / "w1")
    assert run_fetch(folder, tmp_path / "w2").steps == []
    one = sorted(folder.glob("*.safetensors"))[1]
    os.utime(one)
    again = run_fetch(folder, tmp_path / "w3")
    there = [file.nbytes for file in first.files.values() if file.path == one]
    assert again.steps[-1] == (sum(there), sum(there))
    assert (slices(again), again.facts) == (slices(first), first.facts)
    data = bytearray(one.read_bytes())
    data[-1] ^= 1
    one.write_bytes(data)
    changed = slices(run_fetch(folder, tmp_path / "w4"))
    assert sum(changed[name] != digest for name, digest in slices(first).items()) == 1


def test_a_file_that_may_still_be_written_is_not_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builder.core.memo.RACY_NS", 10**18)
    folder = write_checkpoint(tmp_path / "x", source_tensors())
    for name in ("w1", "w2"):
        out = run_fetch(folder, tmp_path / name)
        assert out.steps[-1][1] == out.facts["source_bytes"]


def test_companions_travel(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "x", source_tensors())
    (folder / "tokenizer.json").write_text('{"model": {}}')
    out = run_fetch(folder, tmp_path / "w")
    assert sorted(out.outputs("file/")) == ["file/config.json", "file/tokenizer.json"]
    assert (out.folder / "file/tokenizer.json").read_text() == '{"model": {}}'
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match=r"tokenizer\.json: is not JSON"):
        run_fetch(folder, tmp_path / "w2")


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "x", source_tensors(), shards=2)
    second = folder / "model-00002-of-00002.safetensors"
    second.write_bytes(second.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: truncated"):
        run_fetch(folder, tmp_path / "w")


def test_pickles_are_converted_once(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder, tensors = tmp_path / "x", source_tensors()
    expected = slices(run_fetch(write_checkpoint(folder, tensors), tmp_path / "w1"))
    (folder / "model.safetensors").unlink()
    state = {name: torch.from_numpy(array) for name, (_, array) in tensors.items()}
    state["lm_head.weight"] = state["lm_head.weight"].t().contiguous().t()  # strided, as some checkpoints are
    names, index = list(state), {}
    for number in (1, 2):
        file = f"pytorch_model-{number:05d}-of-00002.bin"
        part = names[: len(names) // 2] if number == 1 else names[len(names) // 2 :]
        torch.save({name: state[name] for name in part}, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    out = run_fetch(folder, tmp_path / "w2")
    assert slices(out) == expected
    assert out.outputs("converted-")


class Trap:
    """Unpickled, it makes a folder."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.path,)


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    folder = tmp_path / "x"
    write_checkpoint(folder, source_tensors())
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin: cannot be read with weights-only loading"):
        run_fetch(folder, tmp_path / "w1")
    torch.save({"weight": Trap(str(tmp_path / "sprung"))}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="weights-only loading"):
        run_fetch(folder, tmp_path / "w2")
    assert not (tmp_path / "sprung").exists()
    torch.save({"step": 3, "w": torch.from_numpy(np.zeros(3))}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="entry 'step' is a int; allowed: tensors"):
        run_fetch(folder, tmp_path / "w3")
