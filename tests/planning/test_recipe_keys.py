"""Reasons name the keys of a recipe as a user types them, whatever a step calls its parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_build.app.merge import merge
from llm_build.config.choices import find_folders
from llm_build.config.compose import compose
from llm_build.core.plan import Plan
from llm_build.core.reason import KeyState, differences
from llm_build.planner.graph.recipe_keys import RECIPE_KEYS

BEFORE = ("quant=q4f16_1",)
NOT_TYPED = ("name", "library", "moments")  # what follows from other keys


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_BUILD_STORE", str(tmp_path / "store"))


def plan(*overrides: str) -> Plan:
    return merge([compose(list(overrides), None)], find_folders()).plan


def state(params: Any) -> KeyState:
    parts = {"function": "f", "params": params, "tools": {}, "code": "", "watch": {}, "inputs": {}}
    return KeyState(parts, {}, None)


@pytest.mark.parametrize(
    ("override", "steps"),
    [
        ("model.context_window_size=512", {"lower", "package"}),
        ("model.allow_nonfinite=true", {"quantize"}),
        ("model.conv_template=llama-2", {"package"}),
        ("quant.group_size=64", {"lower", "package", "shard", "verify.dequantized"}),
        ("quant.max_shard_bytes=65536", {"shard"}),
        ("quant.method=rtn", {"package", "quantize", "verify.dequantized"}),
        ("pins.checkpoint=blake3:0", {"fetch"}),
        ("verify.tokens=300", {"verify.reference", "verify.dequantized"}),
        ("verify.kl=0.5", {"verify"}),
    ],
)
def test_a_reason_names_the_key_that_was_typed(override: str, steps: set[str]):
    last = {step.name: step for step in plan(*BEFORE).steps.values()}
    now = {step.name: step for step in plan(*BEFORE, override).steps.values()}
    key = override.partition("=")[0]
    named = set()
    for name, step in now.items():
        found = differences(state(last[name].params), state(step.params), {}, step.recipe_keys)
        if key in {each.what for each in found}:
            named.add(name)
            assert any(each.text.startswith(f"{key} ") for each in found)
    assert named == steps


def test_no_parameter_of_a_recipe_goes_by_another_name():
    """What a step takes from a section of the recipe is in the table, or has the section's name."""
    sections = {"model", "quant", "target", "verify", "package", "pins"}
    for step in plan(*BEFORE).steps.values():
        for name in step.params:
            typed = step.recipe_keys.get(name, name).partition(".")[0]
            derived = name in NOT_TYPED or name in step.locked_params or name in ("format", "text", "scales")
            assert typed in sections or derived, f"{step.name}: {name}"


def test_what_is_no_key_of_a_recipe_keeps_its_name():
    (found,) = differences(state({"linker": "a"}), state({"linker": "b"}), {}, RECIPE_KEYS)
    assert (found.what, found.text) == ("linker", "linker a → b")
