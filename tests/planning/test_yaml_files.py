"""Files of recipes and choices that cannot stand: each ends in words about the file, whatever raised inside."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.core.errors import UserError
from llm_build.planner import resolve


@pytest.fixture
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    (tmp_path / "conf" / "quant").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize("word", ["off", "Off", "no", "false", '"off"'])
def test_off_is_the_choice_of_that_name(word, own_files):
    (own_files / "recipes" / "mine.yaml").write_text(f"defaults:\n  - override /verify: {word}\n")
    composed = compose.compose(["recipe=mine"], None)
    assert composed.choices["verify"] == "off"
    assert composed.values["verify"]["enabled"] is False


def test_a_choice_whose_name_is_a_number(own_files):
    (own_files / "conf" / "quant" / "4.yaml").write_text("name: q0f32\nkind: none\ndtype: float32\n")
    (own_files / "recipes" / "mine.yaml").write_text("defaults:\n  - override /quant: 4\n")
    assert compose.compose(["recipe=mine"], None).choices["quant"] == "4"


UNREADABLE = {
    "utf-16": ("model:\n  max_batch_size: 2\n".encode("utf-16"), "is not UTF-8 text"),
    "latin-1": ("# Größe\nmodel: {}\n".encode("latin-1"), "is not UTF-8 text"),
    "half a character": ("name: ü".encode()[:-1], "is not UTF-8 text"),
    "an open bracket": (b"model: [demo\n", "is not valid YAML"),
    "a tab": (b"model:\n\tmax_batch_size: 2\n", "is not valid YAML"),
    "a key twice": (b"name: a\nname: b\n", "is not valid YAML"),
    "a NUL": (b"name: a\0b\n", "is not valid YAML"),
    "an object": (b"name: !!python/object:os.system {}\n", "is not valid YAML"),
    "an unknown anchor": (b"name: *a\n", "is not valid YAML"),
    "two documents": (b"name: a\n---\nname: b\n", "is not valid YAML"),
    "deep nesting": (b"name: " + b"[" * 5000 + b"]" * 5000, "is not valid YAML"),
    "a list": (b"- model\n- quant\n", "holds a list"),
    "broken interpolation": (b"name: ${model.\n", "mine.yaml|does not compose"),
    "interpolation of itself": (b"name: ${name}\n", "name|does not compose"),
    "an unknown resolver": (b"name: ${nothing:1}\n", "nothing"),
    "defaults of a number": (b"defaults: 3\n", "does not compose"),
    "an empty default": (b"defaults:\n  - {}\n", "does not compose"),
    "two groups in one default": (b"defaults:\n  - {quant: q0f32, verify: off}\n", "does not compose"),
    "a default of a mapping": (b"defaults:\n  - override /quant: {a: 1}\n", "does not compose"),
    "a default that is a date": (b"defaults:\n  - override /quant: 2026-01-01\n", "2026-01-01"),
    "an unknown choice": (b"defaults:\n  - override /quant: q9\n", "quant"),
    "a number for a section": (b"model: 3\n", "expected a mapping|does not compose"),
}


@pytest.mark.parametrize("fault", UNREADABLE)
def test_a_recipe_that_cannot_be_read_is_a_users_error(fault, own_files):
    content, message = UNREADABLE[fault]
    (own_files / "recipes" / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        resolve.resolve(compose.compose(["recipe=mine"], None), find_folders())
    if message.startswith(("is not", "holds")):
        assert "recipes/mine.yaml" in caught.value.message, "the file's name"


@pytest.mark.parametrize("fault", ["utf-16", "latin-1", "an open bracket", "a list"])
def test_so_is_a_choice(fault, own_files):
    content, message = UNREADABLE[fault]
    (own_files / "conf" / "quant" / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        compose.compose(["quant=mine"], None)
    assert "conf/quant/mine.yaml" in caught.value.message


def test_a_byte_order_mark_is_no_fault(own_files):
    (own_files / "recipes" / "mine.yaml").write_text("# @package _global_\nname: mine\n", encoding="utf-8-sig")
    assert compose.compose(["recipe=mine"], None).values["name"] == "mine"
