"""What quant.method makes stale: the weights and what is measured of them, never the library."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.config.schema import Quant
from llm_build.core.errors import UserError
from llm_build.core.plan import Plan
from llm_build.planner import resolve
from llm_build.planner.graph import graph
from llm_build.planner.schemes import schemes
from llm_build.quant.methods import METHODS


def plan_of(*jobs: list[str]) -> Plan:
    folders = find_folders()
    named = [[*job, f"name=build{i}"] for i, job in enumerate(jobs)]
    return graph.build_plan([resolve.resolve(compose.compose(job, None), folders) for job in named])


def counts(plan: Plan) -> dict[str, int]:
    names = [step.name for step in plan.steps.values()]
    return {name: names.count(name) for name in names}


def test_methods_share_the_library() -> None:
    found = counts(plan_of(*[[f"quant.method={name}"] for name in ("rtn", *METHODS)]))
    assert found == {
        "fetch": 1, "convert": 1, "calibrate": 1, "scales": 1, "shard": 3, "quantize": 4, "lower": 1, "package": 4,
        "verify.reference": 1, "verify.dequantized": 4, "verify": 4,
    }  # fmt: skip


def test_one_calibration_serves_every_scheme_and_damping() -> None:
    jobs = [["quant=q4f16_1"], ["quant=q4f32_1"], ["quant=q4f16_1", "quant.damping=0.1"]]
    found = counts(plan_of(*[[*job, "quant.method=gptq"] for job in jobs]))
    assert (found["calibrate"], found["shard"], found["quantize"], found["lower"]) == (1, 2, 3, 2)


def test_settings_of_another_method_are_no_identity() -> None:
    found = counts(
        plan_of(["quant.method=mse"], ["quant.method=mse", "quant.damping=0.5", "quant.calibration.tokens=64"])
    )
    assert found["quantize"] == 1


def test_a_method_loads_its_own_code_only() -> None:
    plan = plan_of(["quant.method=rtn"], ["quant.method=mse"], ["quant.method=gptq"])
    code = sorted(step.code for step in plan.steps.values() if step.name == "quantize")
    assert code == [(), (METHODS["gptq"],), (METHODS["mse"],)]


def test_every_key_that_is_no_scheme_is_a_key_of_quant() -> None:
    assert set(schemes.NOT_SCHEME) <= {field.name for field in dataclasses.fields(Quant)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["quant.method=mes"], r"quant.method \(on the command line\): 'mes' is not possible; .*did you mean mse\?"),
        (["quant=q0f16", "quant.method=mse"], r"mse chooses integers of groups; q0f16 has none"),
        (["quant=q4f16_zp128", "quant.method=mse"], r"mse chooses scales around a zero in the middle; q4f16_zp128 has"),
        (["quant.method=imported"], r"quant=imported, and nothing else, takes a checkpoint's own integers"),
        (["quant=imported"], r"has no quantization_config: the checkpoint is not quantized"),
        (["quant.method=gptq", "quant.calibration.text=/no/such.txt"], r"quant.calibration.text=/no/such.txt: cannot"),
        (["quant.method=gptq", "quant.damping=0"], r"quant.damping .*: 0.0 is not possible; allowed: 1e-06 to 1"),
        (["quant.calibration.token=5"], r"quant.calibration.token.*: unknown key; did you mean tokens"),
    ],
)
def test_what_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_of(words)


def test_the_calibration_text_counts_by_its_content(tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "t.txt", tmp_path / "b" / "t.txt"
    for path in (one, two):
        path.parent.mkdir()
        path.write_text("the same words")
    steps = [plan_of(["quant.method=gptq", f"quant.calibration.text={path}"]).steps.values() for path in (one, two)]
    params = [next(dict(step.params) for step in found if step.name == "calibrate") for found in steps]
    assert params[0] == params[1]
