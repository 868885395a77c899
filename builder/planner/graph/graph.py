"""Recipes -> one Plan. The files of this folder alone name steps; none imports the modules that run them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple

from llm_build.config.schema import Recipe
from llm_build.core.errors import UserError
from llm_build.core.plan import Goal, Plan
from llm_build.core.step import Step
from llm_build.planner.cell_memo import CellMemo
from llm_build.planner.graph.library import link_steps, lower_step
from llm_build.planner.graph.package import app_step, package_step, web_page_steps
from llm_build.planner.graph.placement import with_cluster_resources
from llm_build.planner.graph.ranks import rank_steps
from llm_build.planner.graph.verify import reference_steps, verify_step
from llm_build.planner.graph.weights import weight_steps
from llm_build.targets import link
from llm_build.targets.mlc_apps import APPS


def build_plan(recipes: Sequence[Recipe]) -> Plan:
    """One plan for all recipes: a step that several of them need is in it once.

    Raises UserError when two recipes write to one folder.
    """
    steps: dict[str, Step] = {}
    goals: list[Goal] = []
    names: dict[str, Recipe] = {}
    linker, once = link.identity(), CellMemo()
    for recipe in recipes:
        if (other := names.setdefault(recipe.name, recipe)) is not recipe:
            raise UserError(
                f"two builds write to {recipe.name}: {_overrides_of(other)} and {_overrides_of(recipe)}",
                "give each a name of its own: name=...",
            )
        chain, artifact = _chain_of(recipe, linker, once)
        steps |= {step.id: step for step in chain}
        goals.append(Goal(recipe.name, tuple(s.id for s in chain), artifact, recipe.undecided))
    return Plan(steps, tuple(goals))


def _overrides_of(recipe: Recipe) -> str:
    """The overrides that made a recipe, as they were typed."""
    return " ".join(text.removeprefix("++") for text in recipe.overrides) or "no overrides"


def _chain_of(recipe: Recipe, linker: str, once: CellMemo) -> tuple[list[Step], str]:
    """The steps of one recipe, in the order they are shown, and the id of the one whose outputs are the artifact.

    While the rules of a recipe are not decided, its steps end with the one that decides them, and the id is empty."""
    own = (recipe.model, recipe.quant, recipe.pins, recipe.architecture, recipe.checkpoint, recipe.budget)
    of = (*own, recipe.verify, *astuple(recipe.metadata), recipe.undecided)  # not the target, and no name
    weights = once("weights", of, lambda: weight_steps(recipe))
    if recipe.undecided:
        return list(weights.values()), ""
    fetch, shard, quantize = (weights[name] for name in ("fetch", "shard", "quantize"))
    lower = lower_step(recipe, linker)
    linked = link_steps(lower) if recipe.target.library == "wasm" else []
    ranks = rank_steps(recipe, shard, quantize)
    package = package_step(recipe, fetch, shard, (ranks or [quantize])[-1], (linked or [lower])[-1])
    made = [package]
    if recipe.package.kind == "web_page":
        made += web_page_steps(recipe, package)
    if recipe.package.kind in APPS:
        made.append(app_step(recipe, package, lower))
    chain = [*weights.values(), *ranks, lower, *linked, *made]
    if recipe.verify.enabled:
        references = once("references", of, lambda: reference_steps(recipe, weights))
        chain += [*references, verify_step(recipe, references, package)]
    return with_cluster_resources(chain), made[-1].id
