"""What `build bench` measures, on a tiny artifact."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest

from llm_build.runtime import speed
from tests.conftest import ROOT
from tests.tvm.conftest import Built


@pytest.fixture(scope="module")
def case(built: Callable[[str, str], Built]) -> Built:
    return built("grouped", "q0f32")


def test_a_rate_is_what_was_done_by_the_time_it_took():
    assert speed.rate(10, [1.0, 2.0, 5.0]) == {"median": 5.0, "low": 2.0, "high": 10.0, "runs": 3}


def test_repeated_gives_up_early_but_not_before_three_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(speed, "time_once", lambda _work: 12.0)
    undone: list[int] = []
    assert speed.time_runs(lambda: None, lambda: undone.append(1)) == [12.0] * 3
    assert len(undone) == 3
    monkeypatch.setattr(speed, "time_once", lambda _work: 0.1)
    assert len(speed.time_runs(lambda: None, lambda: None)) == speed.RUNS


def test_what_a_token_reads(case: Built):
    files = {file.name: file for file in case.folder.iterdir()}
    metadata = case.engine().metadata
    elements = {"model.embed_tokens.weight": 0}
    total = 0
    for parameter in metadata["params"]:
        count = 1
        for axis in parameter["shape"]:
            count *= axis
        total += elements.get(parameter["name"], count)
    assert speed.weights_read(files, metadata) == 4 * total
    assert speed.weights_read(files, metadata, active=0.5) < 4 * total
    cache = metadata["kv_cache"]
    row = 2 * 4 * cache["num_hidden_layers"] * cache["num_key_value_heads"] * cache["head_dim"]
    assert speed.cache_read(metadata, 10) == 10 * row
    assert speed.cache_read({**metadata, "sliding_window_size": 4}, 10) == 4 * row


def test_a_process_that_measures(case: Built):
    request = {"files": {f.name: str(f) for f in case.folder.iterdir()}, "prompt": 16, "contexts": [8, 512]}
    messages = measured(request)
    assert [message["label"] for message in messages[:-1]] == [
        "load", "prefill", "decode at 8", "decode at 64", "decode at 512", "memory bandwidth",
    ]  # fmt: skip
    result = messages[-1]["result"]
    assert [row["context"] for row in result["decode"]] == [8, 64]
    assert result["left_out"] == [{"context": 512, "why": "the library's context is 128 tokens"}]
    assert 0 < result["load_s"] < result["first_token"]["cold_s"]
    assert result["memory"]["peak_rss_bytes"] > result["weights_read_bytes"] > 0
    assert result["memory"]["device_bytes"] is None
    for row in result["decode"]:
        rate, limit = row["tokens_per_s"], result["bandwidth_bytes_per_s"] / row["bytes_read"]
        assert 0 < rate["low"] <= rate["median"] <= rate["high"]
        assert row["share_of_limit"] == pytest.approx(rate["median"] / limit)


def test_an_artifact_that_does_not_load_says_why(case: Built):
    files = {f.name: str(f) for f in case.folder.iterdir() if f.suffix != ".so"}
    messages = measured({"files": files, "prompt": 16, "contexts": [8]})
    assert "should hold one library" in messages[-1]["error"]
    assert messages[-1]["hint"] == "build"


def measured(request: dict) -> list[dict]:
    command = [sys.executable, "-m", "llm_build.runtime.measured"]
    done = subprocess.run(
        command, cwd=ROOT, input=json.dumps(request), capture_output=True, text=True, check=True, timeout=120
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
