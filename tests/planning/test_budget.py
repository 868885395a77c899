"""quant.budget: what can be planned before its rules are picked, what after, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from llm_build.architectures.weights import Parameter
from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.config.schema import Recipe
from llm_build.core.errors import UserError
from llm_build.core.filestore import open_store
from llm_build.core.plan import Plan
from llm_build.planner import resolve
from llm_build.planner.graph import graph
from llm_build.planner.schemes import budget, schemes

FIRST = ["fetch", "convert", "sensitivity", "allocate"]
RULES = [{"match": "*.down_proj", "layers": [0, [2, 3]], "use": "q6f16_1"}, {"match": "lm_head", "use": "q8f16_1"}]


def recipe_of(*words: str) -> Recipe:
    name = re.sub(r"\W", "_", "-".join(words))
    return resolve.resolve(compose.compose([f"name=it{name}", *words], None), find_folders())


def picked(recipe: Recipe) -> Recipe:
    """The recipe as RULES make it."""
    assert recipe.budget
    names = [parameter.name for parameter in schemes.parameters(recipe.family, recipe.architecture)]
    tables = recipe.budget.candidates
    found = budget.rules.resolve(RULES, names, "float16", lambda name: dict(tables[name]))
    return replace(recipe, quant=replace(recipe.quant, rules=found), undecided=False)


def names_of(plan: Plan) -> list[str]:
    return [step.name for step in plan.steps.values()]


def test_before_the_rules_are_picked_only_their_steps_can_be_planned(tmp_path: Path) -> None:
    recipe = recipe_of("quant.budget=4.5")
    plan = graph.build_plan([recipe])
    assert names_of(plan) == FIRST
    (goal,) = plan.goals
    assert (goal.artifact, goal.partial) == ("", True)
    assert budget.with_stored_rules([recipe], plan, open_store(tmp_path)) == (recipe,)


def test_afterwards_the_plan_is_that_of_written_rules() -> None:
    by_hand = recipe_of(f"quant.rules={str(RULES).replace(chr(39), '')}")
    measured, written = (graph.build_plan([recipe]) for recipe in (picked(recipe_of("quant.budget=4.5")), by_hand))
    assert names_of(measured) == [*FIRST, *names_of(written)[2:]]
    same = {step.name: step.id for step in written.steps.values() if step.name not in ("package", "verify")}
    assert {step.name: step.id for step in measured.steps.values() if step.name in same} == same
    limits = next(dict(step.params["limits"]) for step in measured.steps.values() if step.name == "verify")
    assert set(limits) == {"exact_max", "exact_rms"}  # what a budget costs is measured, and fails nothing by itself


def test_all_budgets_share_one_measurement() -> None:
    words = [["quant.budget=4.5"], ["quant.budget=5"], ["quant.budget=5", "quant=q8f16_1", "quant.method=gptq"]]
    names = names_of(graph.build_plan([recipe_of(*some) for some in words]))
    assert {name: names.count(name) for name in FIRST} == {
        "fetch": 1, "convert": 1, "sensitivity": 1, "allocate": 3
    }  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["quant.budget=3.5"], r"3.5 bits per weight is not possible with q3f16_1, q4f16_1, .*; allowed: 3.91 to 8.50"),
        (["quant.budget=9"], r"9 bits per weight is not possible with .*; allowed: 3.91 to 8.50"),
        (["quant.budget=0"], r"quant.budget.*: 0.0 is not possible; allowed: 1 to 32"),
        (["quant.budget=5", "quant=mixed_q4_q8"], "it picks the rules, and mixed_q4_q8 has some"),
        (["quant.budget=5", "quant=q0f16"], "q0f16 quantizes nothing"),
        (["quant.budget=5", "quant=q4f32_1"], "q3f16_1 has dtype float16; q4f32_1 has float32"),
        (["quant.budget=5", "quant.candidates=[q4f16_1]"], "found q4f16_1; allowed: two schemes or more"),
        (["quant.budget=5", "quant.candidates=[q4f16_1,q0f16]"], "q0f16 is none of: integers in groups"),
        (["quant.budget=5", "quant.candidates=[q4f16_1,q5f16_1]"], "quant=q5f16_1: no such choice"),
    ],
)
def test_refusals(words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        recipe_of(*words)


def test_a_mixture_of_experts_is_refused_by_name() -> None:
    model = [Parameter("a.weight", (64, 64), "linear"), Parameter("router.weight", (4, 64), "router")]
    quant = recipe_of("quant.budget=5").quant
    with pytest.raises(UserError, match="mixtures of experts cannot be measured yet; allowed: rules of your own"):
        budget.check_own(quant, model, lambda _: "")
