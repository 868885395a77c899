"""What to type where a scheme cost a model much: which method or scheme loses less, and how much of it is known."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from llm_build.app.request import BuildRequest
from llm_build.config.schema import Recipe
from llm_build.core.digest import canonical
from llm_build.core.filestore import FileStore
from llm_build.core.run import Outcome
from llm_build.planner.graph.verify import DEQUANTIZED, VALIDATIONS
from llm_build.planner.schemes.less_loss import identity, is_high, measured_models, ways

_SHOWN = 4


class Advice(NamedTuple):
    """``change``: the override; ``kl``: (least, most) that is to be expected, in nats; ``source``: the models that this
    was measured on, "" where it is this model's own, from the store; ``bits``: per weight, ``more``: than now."""

    change: str
    kl: tuple[float, float]
    source: str
    bits: float
    more: bool
    command: str


def advise(request: BuildRequest, outcome: Outcome) -> dict[str, list[Advice]]:
    """What would lose less, the same bytes first, by goal: for those that ran and whose measured loss is high. A sweep
    compares its own cells already, and the same weights for another target lose the same."""
    recipes = {recipe.name: recipe for recipe in request.recipes}
    tried = {canonical(identity(recipe.quant)) for recipe in request.recipes}
    found: dict[str, list[Advice]] = {}
    seen: set[tuple[object, bytes]] = set()
    for goal in outcome.plan.goals:
        record = next((outcome.records[id_] for id_ in goal.steps if _is_check(outcome, id_)), None)
        kl = record.facts.get("kl") if record else None
        if record is None or not isinstance(kl, float) or not is_high(kl) or outcome.goal(goal.name) != "ran":
            continue
        recipe, reference = recipes[goal.name], record.parts["inputs"].get("reference")
        if (weights := (reference, canonical(identity(recipe.quant)))) not in seen:
            seen.add(weights)
            known = _measured(request.store, reference)
            found[goal.name] = _advice(recipe, kl, known, tried)
    return {name: advice for name, advice in found.items() if advice}


def _is_check(outcome: Outcome, id_: str) -> bool:
    return outcome.plan.steps[id_].validation and id_ in outcome.records


def _advice(recipe: Recipe, kl: float, known: Mapping[bytes, float], tried: set[bytes]) -> list[Advice]:
    found = []
    for way in ways(recipe):
        weights = canonical(identity(way.quant))
        if weights in tried:
            continue
        measured = known.get(weights)
        expected = (measured, measured) if measured is not None else (kl * way.share[0], kl * way.share[1])
        if expected[1] < kl:
            command = command_with(recipe.overrides, way.change)
            source = measured_models(recipe) if measured is None else ""
            found.append(Advice(way.change, expected, source, way.bits, way.more, command))
    return sorted(found, key=lambda advice: bool(advice.source))[:_SHOWN]


def _measured(store: FileStore, reference: object) -> dict[bytes, float]:
    """{scheme and method: KL} of every result in the store over the same original, the same text and tokens."""
    found: dict[bytes, float] = {}
    for goal in store.goals():
        last = store.last_results(goal)
        check = next((last[name] for name in VALIDATIONS if name in last), None)
        record = store.load(check.key).record if check else None
        if record is None or DEQUANTIZED not in last or record.parts["inputs"].get("reference") != reference:
            continue
        stored, kl = store.load(last[DEQUANTIZED].key).record, record.facts.get("kl")
        if stored and isinstance(kl, float):
            params = stored.parts["params"]
            found[canonical({"scheme": params["scheme"], "method": params["method"]})] = kl
    return found


def command_with(overrides: tuple[str, ...], change: str) -> str:
    """The command that was typed, with another scheme or method. It writes to a folder of its own."""
    section, replaces_choice = change.partition("=")[0], change.startswith("quant=")
    kept = []
    for override in overrides:
        text = override.lstrip("+")
        key = text.partition("=")[0]
        replaced = key == section or (replaces_choice and (key == "quant" or key.startswith("quant.")))
        if key != "name" and not replaced:
            kept.append(shlex.quote(text))
    return " ".join(["build", *kept, change])


def document_of(advice: list[Advice]) -> list[dict[str, Any]]:
    """The key "advice" of --json."""
    return [
        {
            "change": each.change, "kl_least": round(each.kl[0], 6), "kl_most": round(each.kl[1], 6),
            "measured": not each.source, "bits_per_weight": round(each.bits, 4), "command": each.command,
        }
        for each in advice
    ]  # fmt: skip
