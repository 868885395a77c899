"""quant.budget on the demo: two phases in one command, what reruns, what is stored, and that it is worth it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Shell

MEASURE = ("quant.sensitivity_tokens=128", "quant.calibration.window=64", "quant.method=rtn")  # which losses are of
WEIGHTS = 4393216  # of the demo
AFTER = {"shard", "quantize[0]", "lower", "package", "verify.dequantized", "verify"}


@pytest.fixture(scope="module")
def work(demo: Shell, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A folder beside the demo's store, in which a budget of 4 was built."""
    shell = Shell(tmp_path_factory.mktemp("budget"), demo.store)
    plan = shell.run("plan", "quant.budget=4", *MEASURE).stdout
    assert "2 of 4 steps to run" in plan
    assert "the steps after allocate can be planned when it has picked the rules of quant.budget" in plan
    assert shell.json("plan", "quant.budget=4", *MEASURE)["recipes"][0]["undecided"].startswith("the steps after")
    said = shell.run("why", "lower", "quant.budget=4", *MEASURE, code=2).stderr
    assert "no step 'lower' in this plan; there are: fetch, convert, sensitivity, allocate; the steps after" in said
    done = shell.run("quant.budget=4", *MEASURE)
    assert "bits per weight: " in done.stdout
    assert "use: q4f16_1}" in done.stdout or "use: q3f16_1}" in done.stdout
    return shell


def step(done: dict[str, Any], name: str) -> dict[str, Any]:
    return next(step for step in done["recipes"][0]["steps"] if step["name"] == name)


def stored_bits(shell: Shell, budget: int) -> float:
    """Bits per weight of the files that were put into the output folder."""
    files = (shell.folder / "dist").glob(f"*budget={budget}*/params_shard_*.bin")
    return 8 * sum(file.stat().st_size for file in files) / WEIGHTS


def test_budgets(work: Shell) -> None:
    kl = {}
    for budget, ran in ((4, set()), (5, {"allocate", *AFTER}), (5, set())):
        words = (f"quant.budget={budget}", *MEASURE)
        done = work.json(*words)
        steps = done["recipes"][0]["steps"]
        assert {s["name"] for s in steps if s["status"] == "ran"} == ran
        facts = step(done, "allocate")["facts"]
        assert budget - 0.2 < facts["bits_per_weight"] <= budget
        assert stored_bits(work, budget) == pytest.approx(facts["bits_per_weight"], abs=1e-4)
        kl[budget] = step(done, "verify")["facts"]["kl"]
        assert kl[budget] == pytest.approx(facts["expected_kl"], rel=0.4)
        assert {s["name"] for s in work.json("plan", *words)["recipes"][0]["steps"]} == {s["name"] for s in steps}
        statement = json.loads(next((work.folder / "dist").glob(f"*budget={budget}*/build.json")).read_text())
        said = next(each for each in statement["predicate"]["runDetails"]["byproducts"] if each["name"] == "allocate")
        assert said["annotations"]["facts"]["rules"] == facts["rules"]
    assert kl[5] < 0.3 * kl[4]


def test_the_rules_can_be_pasted_into_a_recipe(work: Shell) -> None:
    """As rules they give the same library and the same weights."""
    rules = step(work.json("quant.budget=5", *MEASURE), "allocate")["facts"]["rules"]
    text = json.dumps(rules).replace('"', "")
    assert work.ran(f"quant.rules={text}", "name=pasted", "quant.method=rtn") == {"package", "verify"}


def test_a_sweep_measures_once(work: Shell) -> None:
    done = work.json("-m", "plan", "quant.budget=4.0,5.0", "quant.method=rtn,mse", *MEASURE[:2])
    keys = {step(done | {"recipes": [each]}, "sensitivity")["key"] for each in done["recipes"]}
    assert len(done["recipes"]) == 4
    assert len(keys) == 1


def test_what_fails_in_the_first_phase_fails_the_build(work: Shell, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("too short")
    done = work.json("-m", "-k", f"quant.calibration.text={text},null", "quant.budget=4.0", *MEASURE, code=2)
    found = {each["status"] for each in done["recipes"]}
    assert len(found) == 2
    assert found < {"failed", "fresh", "ran"}
    failed = next(each for each in done["recipes"] if each["status"] == "failed")
    assert "short.txt has" in step({"recipes": [failed]}, "sensitivity")["error"]["message"]
