"""Every step of a sweep is in its plan once and runs once, and a sweep that is up to date loads nothing.

The bytes of the results are made up (benchmarks/synthetic.py); `python -m tools.sweep` compiles them."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import synthetic
from llm_build.app.sweep import objective_values
from llm_build.config.choices import Composed, find_folders
from llm_build.config.compose import compose
from llm_build.config.sweeps.objective import value_of
from llm_build.core.errors import UserError
from llm_build.core.task import StepTask
from llm_build.planner import resolve
from llm_build.planner.cell_memo import CellMemo
from llm_build.planner.graph import graph
from tests.conftest import ROOT, Shell
from tools.sweep.__main__ import runs

HEAVY = ("tvm", "torch", "transformers", "ray", "hydra", "omegaconf", "numpy", "blake3")
FAMILIES = {  # config.json of three, small
    "llama": {"rms_norm_eps": 1e-5, "num_key_value_heads": 2},
    "gpt_neox": {"rotary_pct": 0.25, "use_parallel_residual": True, "layer_norm_eps": 1e-5},
    "qwen3": {"rms_norm_eps": 1e-5, "num_key_value_heads": 2, "head_dim": 32},
}
SIZES = {
    "hidden_size": 128, "intermediate_size": 240, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 256, "tie_word_embeddings": False, "hidden_act": "silu",
}  # fmt: skip
AXES = {
    "model": list(FAMILIES), "quant": ["q0f16", "q4f16_1", "q8f16_1", "q4f32_1"], "target": ["cpu", "android", "ios"],
}  # fmt: skip


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder with a choice for each family, whose checkpoint is a config.json and weights that nothing reads."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "conf" / "model").mkdir(parents=True)
    for family, own in FAMILIES.items():
        (folder / family).mkdir()
        act = {"hidden_act": "gelu"} if family == "gpt_neox" else {}
        config = {"model_type": family, **SIZES, **own, **act}
        (folder / family / "config.json").write_text(json.dumps(config))
        (folder / family / "model.safetensors").write_bytes(family.encode())
        (folder / "conf" / "model" / f"{family}.yaml").write_text(f"source: {folder / family}\n")
    return Shell(folder, folder / "store")


@pytest.fixture
def here(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shell.folder)
    monkeypatch.setenv("LLM_BUILD_STORE", str(shell.store))
    return shell.folder


@pytest.fixture
def cells(here: Path) -> list[Composed]:
    """36, put together from ten that Hydra composes."""
    found = {
        word: compose([word], here / "store" / "cache" / "compose")
        for word in (f"{group}={name}" for group, names in AXES.items() for name in names)
    }
    made = []
    for names in itertools.product(*AXES.values()):
        words = tuple(f"{group}={name}" for group, name in zip(AXES, names, strict=True))
        values = {group: found[word].values[group] for group, word in zip(AXES, words, strict=True)}
        choices = dict(zip(AXES, names, strict=True))
        made.append(Composed({**found[words[0]].values, **values}, {**found[words[0]].choices, **choices}, words))
    return made


def counted(jobs: list[StepTask]) -> Counter[str]:
    assert len({job.id for job in jobs}) == len(jobs), "a step ran twice"
    return runs(dict.fromkeys((job.id for job in jobs), 0.0))


def test_each_step_runs_once(cells: list[Composed]):
    ran = counted(synthetic.fill(cells))
    assert {name: ran[name] for name in ("fetch", "convert", "shard", "quantize", "lower", "package")} == {
        "fetch": 3, "convert": 3, "shard": 12, "quantize": 12, "lower": 36, "package": 36
    }  # fmt: skip
    assert (ran["verify.reference"], ran["verify.dequantized"]) == (3, 12)
    assert not synthetic.fill(cells)


def test_methods_and_budgets_of_a_scheme_share_its_library(here: Path):
    cells = [compose([f"quant.method={method}", f"name={method}"], None) for method in ("rtn", "mse", "gptq", "awq")]
    folders = find_folders()
    plan = graph.build_plan([resolve.resolve(cell, folders) for cell in cells])
    counts = runs(dict.fromkeys(plan.steps, 0.0))
    assert (counts["fetch"], counts["convert"], counts["calibrate"], counts["lower"]) == (1, 1, 1, 1)
    assert counts["quantize"] == 4


def test_a_step_of_a_sweep_is_that_of_the_recipe_alone(cells: list[Composed]):
    """What cells share is worked out once; that must not depend on which of them comes first."""
    folders, once = find_folders(), CellMemo()
    for order in (cells, cells[::-1]):
        together = [resolve.resolve(cell, folders, once) for cell in order]
        plan = graph.build_plan(together)
        for cell, recipe, goal in list(zip(order, together, plan.goals, strict=True))[::5]:
            alone = resolve.resolve(cell, folders)
            assert recipe == alone
            steps = graph.build_plan([alone]).steps
            assert {id_: plan.steps[id_] for id_ in goal.steps} == steps


def test_a_sweep_that_is_up_to_date_loads_nothing(shell: Shell, here: Path, cells: list[Composed]):
    synthetic.fill(cells)
    words = ["-m", *(f"{group}={','.join(names)}" for group, names in AXES.items())]
    shell.run(*words)
    code = (
        "import sys; from llm_build.__main__ import main; code = main(sys.argv[1:]); "
        f"sys.exit(str([name for name in {HEAVY} if name in sys.modules]) + str(code))"
    )
    command = [sys.executable, "-c", code, *words, "--json"]
    done = subprocess.run(command, cwd=here, env=shell.environment(), capture_output=True, text=True, check=False)
    assert done.stderr == "[]0\n"
    found = json.loads(done.stdout)["recipes"]
    assert [recipe["status"] for recipe in found] == ["fresh"] * 36
    assert str(ROOT) not in done.stdout


def test_what_a_job_is_worth_to_a_sweeper(here: Path, cells: list[Composed]):
    synthetic.fill(cells[:2])
    asked = [replace(cell, values={**cell.values, "sweep": {"objective": "perplexity"}}) for cell in cells[:2]]
    assert objective_values(asked, 0) == [42.0, 42.0]
    assert all(math.isnan(value) for value in objective_values(asked, 1))
    assert objective_values(cells[:2], 2) == [2, 2]
    folder = here / "dist" / "llama-q0f16-cpu"
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("build.json")]
    assert value_of(folder, "bytes") == sum(file.stat().st_size for file in files)
    with pytest.raises(
        UserError, match=r"sweep.objective=ppl: no step of .* noted that; allowed: bytes, kl, perplexity"
    ):
        value_of(folder, "ppl")
