"""What every step of the shipped recipes is made of. A refactor must not move this: it would make every store stale."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest
import yaml

from llm_build.config import compose
from llm_build.config.choices import Folders, choices_of, describe, find_folders, shipped
from llm_build.config.sweeps.batch import compose_jobs
from llm_build.config.sweeps.exclude import apply_rules
from llm_build.core.digest import digest_of_names
from llm_build.core.errors import UserError
from llm_build.core.plan import Plan
from llm_build.planner import resolve
from llm_build.planner.graph import graph
from llm_build.targets import apple, cuda, link, webgpu
from tests.planning.test_batch import hydra

HERE = Path(__file__).parent
SHIPPED = {  # recipe -> what makes its plan the same on every machine
    "demo": ["target.cpu=x86-64-v3"],
    "phone": ["model.source=demo"],
    "browser": ["model.source=demo"],
    "gpu_server": ["model.source=demo", "model.context_window_size=auto"],
    "nightly": ["target.cpu=x86-64-v3"],
}
FOUND = {link: "ld:1", cuda: "nvcc 13.0", apple: "metal", webgpu: {"emscripten": "3.1.6", "headers": "sha256:0"}}


def plan_of(*jobs: list[str]) -> Plan:
    folders = find_folders()
    return graph.build_plan([resolve.resolve(compose.compose(job, None), folders) for job in jobs])


@pytest.fixture(autouse=True)
def one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The golden plan is the same on every machine."""
    for module, identity in FOUND.items():
        monkeypatch.setattr(module, "identity", lambda found=identity: found)


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


def golden(recipe: str) -> object:
    """The parts of a recipe's plan; of a sweep what tells them from others, by cell and step."""
    words = [f"recipe={recipe}", *SHIPPED[recipe]]
    text = yaml.safe_load((find_folders().recipes[-1] / f"{recipe}.yaml").read_text())
    params = text.get("hydra", {}).get("sweeper", {}).get("params")
    if params is None:
        return json.loads(json.dumps(parts(plan_of(words))))
    chosen = [[f"{group}={each}" for each in values.split(",")] for group, values in params.items()]
    with hydra() as loader:
        jobs = compose_jobs([[*words, *choices] for choices in product(*chosen)], loader.load, loader.repository)
    folders = find_folders()
    recipes = [resolve.resolve(job, folders) for job in apply_rules(jobs).kept]
    return {
        recipe.name: {name: digest_of_names(each) for name, each in parts(graph.build_plan([recipe])).items()}
        for recipe in recipes
    }


def file_of(recipe: str) -> Path:
    return HERE / f"golden_{recipe}.json"


@pytest.mark.parametrize("recipe", SHIPPED)
def test_golden_plan_of_each_shipped_recipe(recipe: str):
    """To accept a change: python -m tests.planning.test_graph"""
    assert golden(recipe) == json.loads(file_of(recipe).read_text())


def test_each_shipped_recipe_has_a_golden_plan_and_says_what_it_is():
    known = choices_of("recipe", Folders((shipped("conf"),), (shipped("recipes"),)))
    assert set(known) == set(SHIPPED)
    assert all(20 < len(describe(file)) < 120 for file in known.values())


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
    with pytest.raises(UserError, match=r"two builds write to one: model.context_window_size=64 name=one and"):
        plan_of(["model.context_window_size=64", "name=one"], ["model.context_window_size=128", "name=one"])


def test_a_scheme_that_cannot_hold_the_model_is_refused_at_plan_time():
    with pytest.raises(UserError, match="group_size"):
        plan_of(["quant.group_size=4"])


if __name__ == "__main__":
    for module, identity in FOUND.items():
        module.identity = lambda found=identity: found
    for name in SHIPPED:
        file_of(name).write_text(json.dumps(golden(name), indent=1) + "\n")
