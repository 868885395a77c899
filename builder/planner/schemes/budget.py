"""quant.budget: rules that are measured, not written.

Such a recipe is planned in two phases. The first ends with `allocate`, whose result is the rules; while the store does
not have it, nothing further can be planned. With it the recipe is like one whose rules were written by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil, floor, prod
from typing import Any

from llm_build.architectures.weights import Parameter
from llm_build.config.choices import Folders
from llm_build.config.schema import Budget, Quant, Recipe
from llm_build.config.strict import Where
from llm_build.core.errors import UserError
from llm_build.core.examine import examine
from llm_build.core.plan import Plan
from llm_build.core.record import Record
from llm_build.core.store import Store
from llm_build.planner.schemes import schemes
from llm_build.planner.schemes.stored_bits import stored_nbytes
from llm_build.quant import rules
from llm_build.quant.layout import Scheme, is_quantized, parse_scheme


def budget_of(quant: Quant, family: str, architecture: Mapping[str, Any], folders: Folders, where: Where) -> Budget:
    """What the rules are to be decided from.

    Raises:
        UserError: the candidates cannot serve this scheme or this model; the budget is out of their range.
    """
    assert quant.budget is not None
    model = schemes.parameters(family, architecture)
    check_own(quant, model, where)
    tables = {name: schemes.table_of_choice(name, folders) for name in quant.candidates}
    for name, table in tables.items():
        _check_candidate(name, parse_scheme(table), quant, model, where)
    if len(tables) < 2:
        names = ", ".join(quant.candidates) or "none"
        raise UserError(
            f"quant.candidates{where('quant.candidates')}: found {names}; allowed: two schemes or more",
            "build list quant",
        )
    return Budget(quant.budget, tables, _check_range(quant, model, tables, where))


def check_own(quant: Quant, model: Sequence[Parameter], where: Where) -> None:
    """Raises UserError where the scheme leaves nothing to pick, or the model cannot be measured."""
    at = f"quant.budget{where('quant.budget')}"
    if quant.method == "imported":
        raise UserError(f"{at}: the checkpoint's own integers are taken over as they are", "build quant=imported")
    if quant.rules:
        raise UserError(f"{at}: it picks the rules, and {quant.name} has some", "build quant=q4f16_1 quant.budget=5")
    if not any(is_quantized(parameter, parse_scheme(schemes.scheme_of(quant))) for parameter in model):
        raise UserError(f"{at}: {quant.name} quantizes nothing", "build quant=q4f16_1 quant.budget=5")
    if any(parameter.kind == "router" for parameter in model):
        raise UserError(
            f"{at}: mixtures of experts cannot be measured yet; allowed: rules of your own",
            "build quant=mixed_q4_q8, or quant.rules=[{match: ..., use: ...}]",
        )


def _check_candidate(name: str, candidate: Scheme, quant: Quant, model: Sequence[Parameter], where: Where) -> None:
    """Raises UserError for a scheme that cannot be one of several in this recipe."""
    at, wrong = f"quant.candidates{where('quant.candidates')}: {name}", ""
    if candidate.dtype != quant.dtype:
        wrong = f"has dtype {candidate.dtype}; {quant.name} has {quant.dtype}, and a model has one"
    elif candidate.rules or candidate.activation or candidate.zero_point or candidate.kind == "none":
        wrong = "is none of: integers in groups without zero points, 8-bit floats; no rules, float inputs"
    elif not schemes.can_pack(candidate, tuple(model)):
        wrong = "cannot hold this model: its groups are wider than a matrix"
    if wrong:
        raise UserError(f"{at} {wrong}", f"quant.candidates=[...] of dtype {quant.dtype}: build list quant")


def _check_range(
    quant: Quant, model: Sequence[Parameter], tables: Mapping[str, Mapping[str, Any]], where: Where
) -> str:
    """The largest candidate that the budget would pay for the whole model, else the smallest there is: what the result
    has to be at least as good as. Raises UserError when the budget is out of the candidates' range."""
    own, weights = parse_scheme(schemes.scheme_of(quant)), sum(prod(parameter.shape) for parameter in model)
    free = [parameter for parameter in model if is_quantized(parameter, own)]
    kept_nbytes = sum(stored_nbytes(parameter, own) for parameter in model if not is_quantized(parameter, own))
    packers = {name: parse_scheme(table) for name, table in tables.items()}
    sizes = {name: [stored_nbytes(parameter, packer) for parameter in free] for name, packer in packers.items()}
    low, high = (8 * (kept_nbytes + sum(map(pick, zip(*sizes.values(), strict=True)))) / weights for pick in (min, max))
    assert quant.budget is not None
    if not low <= quant.budget <= high:
        least, most = ceil(low * 100) / 100, floor(high * 100) / 100
        raise UserError(
            f"quant.budget{where('quant.budget')}: {quant.budget:g} bits per weight is not possible with "
            f"{', '.join(tables)}; allowed: {least:.2f} to {most:.2f}, scales and what is not quantized included",
            f"build quant.budget={min(max(quant.budget, least), most):.2f}",
        )
    bits_of = {name: 8 * (kept_nbytes + sum(nbytes)) / weights for name, nbytes in sizes.items()}
    return max((bits <= quant.budget, bits if bits <= quant.budget else -bits, name) for name, bits in bits_of.items())[
        2
    ]


def with_stored_rules(recipes: Sequence[Recipe], plan: Plan, store: Store) -> tuple[Recipe, ...]:
    """The recipes, with the rules of those whose `allocate` the store has the result of. ``plan`` is of all of them."""
    goals = [goal for goal, recipe in zip(plan.goals, recipes, strict=True) if recipe.undecided]
    if not goals:
        return tuple(recipes)
    steps = {id_: plan.steps[id_] for goal in goals for id_ in goal.steps}
    verdicts = examine(Plan(steps, tuple(goals)), store)
    results = {goal.name: verdicts[goal.steps[-1]].record for goal in goals}
    return tuple(with_picked_rules(recipe, results.get(recipe.name), store) for recipe in recipes)


def with_picked_rules(recipe: Recipe, result: Record | None, store: Store) -> Recipe:
    """The recipe with the rules that ``result`` of allocate holds."""
    if result is None or recipe.budget is None:
        return recipe
    tables = recipe.budget.candidates
    picked = json.loads(store.read(result.outputs["rules.json"].digest))["rules"]
    names = [parameter.name for parameter in schemes.parameters(recipe.family, recipe.architecture)]
    resolved = rules.resolve(picked, names, recipe.quant.dtype, lambda name: dict(tables[name]))
    return replace(recipe, quant=replace(recipe.quant, rules=resolved), undecided=False)
