"""The shipped choices of conf/model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from llm_build import architectures
from llm_build.planner.sources import HF
from tests.conftest import Shell

PRESETS = sorted((Path(__file__).resolve().parents[2] / "conf" / "model").glob("*.yaml"))


@pytest.mark.parametrize("file", PRESETS, ids=lambda file: file.stem)
def test_a_preset_is_a_line_a_family_and_a_source(file: Path):
    text = file.read_text()
    values = yaml.safe_load(text)
    assert re.match(r"# \S.{4,160}\n", text)
    assert re.fullmatch(r"[a-z][a-z0-9_]*", file.stem)
    assert set(values) <= {"family", "source", "conv_template", "context_window_size"}
    assert values["family"] in {"auto", *architectures.FAMILIES}
    source = values.get("source")
    assert source in (None, "demo") or HF.match(source)
    assert source or "set model.source" in text


def test_a_preset_says_how_to_get_it_without_a_network(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(shell.folder / "hub"))
    said = shell.run("model=tinyllama", code=2).stderr
    assert "hf://TinyLlama/TinyLlama-1.1B-Chat-v1.0@main is not on this disk and the hub cannot be reached" in said
    assert "model.source=/path/to/checkpoint" in said
    assert "hf download TinyLlama/TinyLlama-1.1B-Chat-v1.0" in said
