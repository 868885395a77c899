"""A user's own scheme is a file and no code; and changing one of its rules redoes the shards of what it touches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.core.events import Event, Finished
from llm_build.core.filestore import open_store
from llm_build.core.plan import Goal, Plan
from llm_build.core.run import run
from llm_build.core.step import Resources
from llm_build.executors.local import LocalExecutor
from llm_build.planner import resolve
from llm_build.planner.graph import graph
from tests.conftest import Shell

Q5G64 = """\
# 5-bit integers in groups of 64
name: q5g64
kind: group
bits: 5
group_size: 64
layout: NK
dtype: float16
storage_dtype: uint32
quantize_embedding: true
quantize_head: true
"""
WEIGHTS = ("fetch", "convert", "shard", "quantize")


def own(folder: Path, name: str, text: str) -> None:
    (folder / "conf" / "quant").mkdir(parents=True, exist_ok=True)
    (folder / "conf" / "quant" / f"{name}.yaml").write_text(text)


def test_a_scheme_of_ones_own_is_built_verified_and_generated_from(demo: Shell, tmp_path: Path) -> None:
    shell = Shell(tmp_path, demo.store)
    own(tmp_path, "q5g64", Q5G64)
    made = shell.json("generate", "Once upon a time", "quant=q5g64", "--max-tokens", "8")
    assert len(made["text"].split()) > 4
    facts = next(step["facts"] for step in made["recipes"][0]["steps"] if step["name"] == "verify")
    assert 0 < facts["kl"] < 0.01  # 4 bits in groups of 32: 0.013
    (shard,) = json.loads((tmp_path / "dist" / "demo-q5g64-cpu" / "tensor-cache.json").read_text())["records"]
    shapes = {record["name"]: record["shape"] for record in shard["records"]}
    groups, words = 256 // 64, -(-64 // 6)  # six values in a word, a group in whole words
    assert shapes["lm_head.q_weight"] == [3072, groups * words]
    assert shapes["lm_head.q_scale"] == [3072, groups]


def ran(store_path: Path, layers: str) -> tuple[set[str], dict[str, set[str]]]:
    """Weights of the demo with one rule for ``layers``: (steps that ran, {quantize item: its parameters})."""
    rule = f'rules: [{{match: ["*.down_proj"], layers: {layers}, use: q8f16_1}}]\n'
    own(Path.cwd(), "mine", Q5G64.replace("q5g64", "mine") + rule)
    words = ["quant=mine", "quant.max_shard_bytes=1000000"]
    recipe = resolve.resolve(compose.compose(words, None), find_folders())
    chain = graph.build_plan([recipe]).steps.values()
    chosen = {step.id: step for step in chain if step.name in WEIGHTS}
    store, ran_now = open_store(store_path), set[str]()

    def listen(event: Event) -> None:
        if isinstance(event, Finished):
            assert event.error is None, event.error
            ran_now.update([event.name] if event.status == "ran" else [])

    with LocalExecutor(store, Resources(cpu=1, memory_bytes=1 << 30)) as executor:
        outcome = run(Plan(chosen, (Goal("mine", tuple(chosen), ""),)), store, executor, listen)
    items = [step for step in outcome.plan.steps.values() if step.name.startswith("quantize[")]
    return ran_now, {step.name: {each["name"] for each in step.params["parameters"]} for step in items}


def test_another_rule_requantizes_the_shards_that_it_touches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first, holds = ran(tmp_path / "store", "[0, 1]")
    assert first == {"fetch", "convert", "shard", *holds}
    second, after = ran(tmp_path / "store", "[0, 2]")
    assert after == holds
    touched = {f"model.layers.{layer}.mlp.down_proj.weight" for layer in (1, 2)}
    assert second == {"shard", *(name for name, names in holds.items() if names & touched)}
    assert 0 < len(second) - 1 < len(holds) - 2
