"""Loading and using an artifact: what goes wrong says so."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from llm_build.core.errors import UserError
from llm_build.runtime.engine import Engine
from llm_build.targets import cpu
from llm_build.targets.tvm_import import import_tvm
from tests.tvm.conftest import Built


@pytest.fixture(scope="module")
def case(built: Callable[[str, str], Built]) -> Built:
    return built("grouped", "q0f32")


@pytest.fixture
def copy(case: Built, tmp_path: Path) -> Path:
    return Path(shutil.copytree(case.folder, tmp_path / "copy"))


def refused(message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        Engine.from_folder(folder)


def test_missing_files(copy: Path, tmp_path: Path):
    refused("is not a folder with a built model", tmp_path / "nothing")
    (copy / "params_shard_1.bin").unlink()
    refused(r"has no params_shard_1\.bin", copy)
    (copy / "tensor-cache.json").unlink()
    refused(r"has no tensor-cache\.json", copy)
    (copy / "library.so").unlink()
    refused(r"should hold one library \(\.so\); found: none", copy)


def test_older_name_of_the_index(copy: Path, case: Built):
    (copy / "tensor-cache.json").rename(copy / "ndarray-cache.json")
    found, expected = Engine.from_folder(copy), case.engine()
    assert np.array_equal(found.prefill(found.add_sequence(), [5]), expected.prefill(expected.add_sequence(), [5]))


def test_truncated_shard(copy: Path):
    shard = copy / "params_shard_0.bin"
    shard.write_bytes(shard.read_bytes()[:-4])
    refused(r"params_shard_0\.bin has \d+ bytes; .* should end at byte", copy)


def test_weights_of_another_build(copy: Path, built: Callable[[str, str], Built]):
    other = built("odd", "q0f32").folder
    for name in ("tensor-cache.json", "params_shard_0.bin", "params_shard_1.bin"):
        shutil.copy(other / name, copy / name)
    refused(r"model\.embed_tokens\.weight' is float32 \[101, 75\] .* compiled for float32 \[203, 64\]", copy)


def test_weights_stored_as_bfloat16(copy: Path, case: Built):
    """f32-to-bf16, as older artifacts store float32: read back as float32."""
    index = json.loads((copy / "tensor-cache.json").read_text())
    for shard in index["records"]:
        path, offset, parts = copy / shard["dataPath"], 0, []
        data = path.read_bytes()
        for record in shard["records"]:
            whole = np.frombuffer(data, np.uint32, record["nbytes"] // 4, record["byteOffset"])
            parts.append((whole >> 16).astype(np.uint16).tobytes())
            record |= {"format": "f32-to-bf16", "nbytes": len(parts[-1]), "byteOffset": offset}
            offset += len(parts[-1])
        path.write_bytes(b"".join(parts))
    (copy / "tensor-cache.json").write_text(json.dumps(index))
    found, expected = Engine.from_folder(copy), case.engine()
    difference = found.prefill(found.add_sequence(), [5, 6]) - expected.prefill(expected.add_sequence(), [5, 6])
    assert 0 < np.abs(difference).max() < 0.1


def test_not_a_library(copy: Path):
    (copy / "library.so").write_bytes(b"text")
    refused(r"library\.so cannot be loaded with apache-tvm", copy)


def test_cpu_without_what_the_library_uses(case: Built, monkeypatch: pytest.MonkeyPatch):
    if case.engine().metadata["target"]["cpu"] == "x86-64-v2":
        pytest.skip("built for the oldest level")
    monkeypatch.setattr(cpu, "host_features", lambda: cpu.implied_features("x86-64-v2"))
    refused(r"library\.so was built for x86-64-v\d.*this machine is x86-64-v2 and lacks .*avx", case.folder)


def test_tokens_and_lengths_are_checked(case: Built):
    engine = case.engine()
    sequence = engine.add_sequence()
    with pytest.raises(UserError, match="token 203 is out of range: this model has tokens 0 to 202"):
        engine.prefill(sequence, [1, 203])
    with pytest.raises(UserError, match="token -1 is out of range"):
        engine.decode(sequence, -1)
    with pytest.raises(UserError, match="non-empty list of tokens"):
        engine.logits(sequence, [])
    with pytest.raises(UserError, match=r"no room for 129 more tokens: the sequence has 0 of 128"):
        engine.prefill(sequence, [1] * 129)
    engine.prefill(sequence, [1] * 128)
    with pytest.raises(UserError, match=r"no room for 1 more token: the sequence has 128 of 128"):
        engine.decode(sequence, 1)
    with pytest.raises(UserError, match=r"there is no sequence 7; there are: \[0\]"):
        engine.decode(7, 1)
    with pytest.raises(UserError, match="as many tokens as different sequences"):
        engine.decode_batch([sequence, sequence], [1, 1])


def test_no_more_sequences_than_there_is_room_for(case: Built):
    engine = Engine.from_folder(case.folder, sequences=2)
    first, _ = engine.add_sequence(), engine.add_sequence()
    with pytest.raises(UserError, match="room for 2 sequences"):
        engine.add_sequence()
    engine.remove_sequence(first)
    again = engine.add_sequence()
    assert engine.prefill(again, [1] * engine.context).shape == (203,)


def test_rewound_tokens_are_forgotten(case: Built):
    engine = case.engine()
    sequence = engine.add_sequence()
    expected = engine.prefill(sequence, [1, 2, 3])
    engine.prefill(sequence, [9] * 40)
    engine.rewind(sequence, 41)
    assert engine.length(sequence) == 2
    assert np.allclose(engine.decode(sequence, 3), expected, atol=1e-5)
    with pytest.raises(UserError, match="sequence 0 has 3 tokens; 4 cannot be taken off"):
        engine.rewind(sequence, 4)


def test_logits_belong_to_the_caller(case: Built):
    engine = case.engine()
    sequence = engine.add_sequence()
    first = engine.decode(sequence, 1)
    kept = first.copy()
    engine.decode(sequence, 2)
    assert np.array_equal(first, kept)


def test_python_takes_little_of_a_token(case: Built, monkeypatch: pytest.MonkeyPatch):
    """Everything around the library's own functions stays under 0.1 ms per token."""
    engine = case.engine()
    sequence, calls = engine.add_sequence(), engine._model
    calls.decode(sequence, 1)
    rows = calls._embed(calls._token_slot.tensor(), calls._params)
    monkeypatch.setattr(calls, "_embed", lambda *_: rows)
    result = [import_tvm().runtime.empty((1, 1, 203), "float32")]
    monkeypatch.setattr(calls, "_decode", lambda *_: result)
    best = min(timed(engine, sequence) for _ in range(5))
    assert best < 1e-4


def timed(engine: Engine, sequence: int) -> float:
    started = time.perf_counter()
    for _ in range(20):
        engine.decode(sequence, 1)
    return (time.perf_counter() - started) / 20
