"""Overrides become plain dicts through Hydra, are remembered, and a user's own files come first."""

from __future__ import annotations

import pytest

from llm_build.config import compose
from llm_build.config.choices import choices_of, describe, find_folders
from llm_build.core.errors import UserError


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_defaults_are_the_demo_in_four_bits_on_this_cpu():
    found = compose.compose([], None)
    assert found.choices == {
        "model": "demo", "quant": "q4f16_1", "target": "cpu", "package": "mlc", "verify": "default",
        "executor": "local",
    }  # fmt: skip
    assert found.values["model"]["source"] == "demo"
    assert "hydra" not in found.values


def test_a_key_that_the_yaml_has_not_is_left_to_the_parser():
    assert compose.compose(["model.rope_theta=1e6"], None).values["model"]["rope_theta"] == 1e6


def test_users_choice_comes_before_the_shipped_one(empty_folder):
    own = empty_folder / "conf" / "model" / "demo.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# mine\nfamily: llama\nsource: /mine\n")
    assert compose.compose([], None).values["model"]["source"] == "/mine"
    assert describe(choices_of("model", find_folders())["demo"]) == "mine"


def test_users_recipe_lies_over_choices_and_the_command_line_over_it(empty_folder):
    (empty_folder / "recipes").mkdir()
    (empty_folder / "recipes" / "small.yaml").write_text(
        "defaults:\n  - override /quant: q0f32\nmodel:\n  context_window_size: 64\n  max_batch_size: 2\n"
    )
    found = compose.compose(["recipe=small", "model.max_batch_size=3"], None)
    assert found.choices["quant"] == "q0f32"
    assert found.choices["recipe"] == "small"
    assert (found.values["model"]["context_window_size"], found.values["model"]["max_batch_size"]) == (64, 3)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model=lama2", r"model=lama2: no such choice; did you mean llama2"),
        ("recipe=dem", r"recipe=dem: no such choice; did you mean demo\?"),
        ("modell=demo", r"modell=: no such choice group; did you mean model\?"),
        ("quant=q0f32,q0f16", r"several values make a sweep"),
        ("model=[", r"does not compose"),
    ],
)
def test_what_hydra_refuses_is_said_in_our_words(override, said):
    with pytest.raises(UserError, match=said):
        compose.compose([override], None)


def test_broken_yaml_is_a_users_error(empty_folder):
    own = empty_folder / "conf" / "quant" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("kind: [group\n")
    with pytest.raises(UserError, match="not valid YAML"):
        compose.compose(["quant=mine"], None)


def test_remembered_result_is_hydras_until_a_file_changes(empty_folder, monkeypatch):
    cache, calls, real = empty_folder / "cache", [], compose.hydra_compose
    monkeypatch.setattr(compose, "hydra_compose", lambda *a: calls.append(a) or real(*a))
    first = compose.compose(["quant=q0f32"], cache)
    assert compose.compose(["quant=q0f32"], cache) == first
    assert len(calls) == 1
    own = empty_folder / "conf" / "quant" / "q0f32.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("name: q0f32\nkind: none\ndtype: float16\n")
    assert compose.compose(["quant=q0f32"], cache).values["quant"]["dtype"] == "float16"
    assert len(calls) == 2


def test_values_from_the_environment_are_never_remembered(empty_folder, monkeypatch):
    monkeypatch.setenv("MINE", "/a")
    overrides = ["model.source=${oc.env:MINE}"]
    assert compose.compose(overrides, empty_folder / "cache").values["model"]["source"] == "/a"
    monkeypatch.setenv("MINE", "/b")
    assert compose.compose(overrides, empty_folder / "cache").values["model"]["source"] == "/b"


def test_garbage_in_the_cache_is_made_anew(empty_folder):
    cache = empty_folder / "cache"
    first = compose.compose([], cache)
    for slot in cache.iterdir():
        slot.write_text("[1, {")
    assert compose.compose([], cache) == first
