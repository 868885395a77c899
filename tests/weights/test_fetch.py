"""fetch names the content of every tensor, wherever it lies."""

from __future__ import annotations

import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3

from llm_build.core.errors import UserError
from llm_build.formats import safetensors, torchbin
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
    monkeypatch.setattr("llm_build.core.memo.RACY_NS", -(10**18))
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
    monkeypatch.setattr("llm_build.core.memo.RACY_NS", 10**18)
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


def torch_bin(folder: Path, state: dict[str, object]) -> Path:
    import torch

    folder.mkdir()
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def test_a_bin_that_stands_for_more_than_it_holds_is_refused_at_once(tmp_path: Path) -> None:
    import torch

    one = torch.zeros(1)
    bombs = {
        "stride 0": ({"w": one.expand(100_000, 100_000)}, "takes 40000000000 bytes of a file of"),
        "meta": ({"w": torch.empty(100_000, 100_000, device="meta")}, "no bytes of its own"),
        "aliases": (aliases(200), "its tensors take"),
    }
    for name, (state, words) in bombs.items():
        path = torch_bin(tmp_path / name, dict(state))
        started = time.process_time()
        with pytest.raises(UserError, match=words):
            torchbin.to_safetensors(path, "pytorch_model.bin", tmp_path / "out")
        assert time.process_time() - started < 1
        assert not (tmp_path / "out").exists()


def aliases(count: int) -> dict[str, object]:
    """Tensors that all lie on the same bytes."""
    import torch

    whole = torch.zeros(100_000)
    return {f"w{i}": whole.view(100_000) for i in range(count)}


def test_a_compressed_bin_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    import torch

    path = torch_bin(tmp_path / "x", {"w": torch.zeros(1_000_000)})
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "small.bin", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(UserError, match=r"unpacks to 40\d+ bytes; allowed: its own"):
        torchbin.to_safetensors(tmp_path / "small.bin", "small.bin", tmp_path / "out")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_damaged_bin_is_read_or_refused(is_zip: bool, tmp_path: Path) -> None:
    """Whatever its bytes make the reader of pickles stumble over."""
    import torch

    state = {"a": torch.zeros(4, 4), "b": torch.ones(3)}
    torch.save(state, tmp_path / "x.bin", _use_new_zipfile_serialization=is_zip)
    data, random = (tmp_path / "x.bin").read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[random.integers(0, min(len(data), 1500), 3)] = random.integers(0, 256, 3)
        (tmp_path / "y.bin").write_bytes(damaged.tobytes())
        try:
            torchbin.to_safetensors(tmp_path / "y.bin", "y.bin", tmp_path / "out")
        except UserError:
            refused += 1
    assert refused > 20


def test_tied_tensors_of_a_bin_are_both_written(tmp_path: Path) -> None:
    import torch

    whole = torch.arange(1000.0)
    path = torch_bin(tmp_path / "x", {"embedding": whole, "head": whole.view(10, 100)})
    torchbin.to_safetensors(path, "x", tmp_path / "out")
    assert [(t.name, t.shape) for t in safetensors.read_header(tmp_path / "out", "out")] == [
        ("embedding", (1000,)), ("head", (10, 100))
    ]  # fmt: skip


def test_an_end_beyond_the_vocabulary_is_noted(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "c", source_tensors(), eos_token_id=[1, 10**6])
    out = run_fetch(folder, tmp_path / "w")
    assert [note for note in out.warnings if "eos_token_id 1000000" in note]
