"""What every step of the shipped recipes is made of. A refactor must not move this: it would make every store stale."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder import compose, graph, resolve
from builder.core.errors import UserError
from builder.core.plan import Plan
from builder.targets import link

GOLDEN = Path(__file__).with_name("golden_demo.json")


def plan_of(*jobs: list[str]) -> Plan:
    folders = compose.find_folders()
    return graph.build_plan([resolve.resolve(compose.compose(job, None), folders) for job in jobs])


@pytest.fixture(autouse=True)
def one_linker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden plan is the same on every machine."""
    monkeypatch.setattr(link, "identity", lambda: "ld:1")


def parts(plan: Plan) -> dict[str, object]:
    """Step -> all that its key is made of, with names for ids."""
    names = {id_: step.name for id_, step in plan.steps.items()}
    return {
        step.name: {
            "function": step.function,
            "params": dict(step.params),
            "inputs": {port: [names[i.step], i.output] for port, i in step.inputs.items()},
            "tools": list(step.tools),
            "code": list(step.code),
            "watch": sorted(step.watch),
            "expand": step.expand,
            "validation": step.validation,
        }
        for step in plan.steps.values()
    }


def test_golden_plan_of_the_demo_recipe():
    """To accept a change: python -m tests.planning.test_graph"""
    found = parts(plan_of(["recipe=demo", "target.cpu=x86-64-v3"]))
    assert json.loads(json.dumps(found)) == json.loads(GOLDEN.read_text())


def test_steps_that_two_recipes_share_are_in_the_plan_once():
    plan = plan_of(["quant=q4f16_1"], ["quant=q4f32_1"], ["quant=q0f16", "verify=off"])
    names = [step.name for step in plan.steps.values()]
    count = {name: names.count(name) for name in names}
    assert count == {
        "fetch": 1, "convert": 1, "shard": 3, "quantize": 3, "lower": 3, "package": 3,
        "verify.reference": 1, "verify.dequantized": 2, "verify": 2,
    }  # fmt: skip


def test_weights_never_depend_on_the_target_nor_the_library_on_weights():
    plan = plan_of(["target.cpu=x86-64-v2"], ["target.cpu=x86-64-v3", "name=other"])
    names = [step.name for step in plan.steps.values()]
    assert (names.count("quantize"), names.count("lower"), names.count("shard")) == (1, 2, 1)
    assert all(not step.inputs for step in plan.steps.values() if step.name == "lower")


def test_two_builds_of_one_name_are_refused():
    with pytest.raises(UserError, match=r"two builds write to demo-q4f16_1-cpu: model.context_window_size=64 and"):
        plan_of(["model.context_window_size=64"], ["model.context_window_size=128"])


def test_a_scheme_that_cannot_hold_the_model_is_refused_at_plan_time():
    with pytest.raises(UserError, match="group_size"):
        plan_of(["quant.group_size=4"])


if __name__ == "__main__":
    link.identity = lambda: "ld:1"
    GOLDEN.write_text(json.dumps(parts(plan_of(["recipe=demo", "target.cpu=x86-64-v3"])), indent=1) + "\n")
