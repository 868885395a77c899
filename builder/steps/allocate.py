"""allocate: the rules that quant.budget stands for, from what sensitivity measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

from builder.architectures.weights import Parameter, parameter_count
from builder.core.digest import canonical
from builder.core.step import InputFiles, Json, Out
from builder.quant.allocation import choose_options, pattern_of, rules_of
from builder.quant.layout import Scheme, is_quantized, parse_scheme, stored_tensors
from builder.steps.ports import one


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write rules.json: {"rules"}, as a recipe writes them.

    What the recipe's own scheme leaves as it is stays so, and every other parameter gets one of the candidates. Where
    that is the scheme itself no rule is needed.

    Args:
        params: "budget" in bits per weight, "scheme" the recipe's own, "candidates" {name: scheme}.
        inputs: "weight_map", "sensitivity" (sensitivity.json).
    """
    weight_map = json.loads(one(inputs["weight_map"]).path.read_bytes())
    losses = json.loads(one(inputs["sensitivity"]).path.read_bytes())["losses"]
    own, tables = (
        parse_scheme(params["scheme"]),
        {name: parse_scheme(table) for name, table in params["candidates"].items()},
    )
    model = [Parameter(entry["name"], tuple(entry["shape"]), entry["kind"]) for entry in weight_map["parameters"]]
    chosen = {parameter: own for parameter in model if not is_quantized(parameter, own)}
    budget_bytes = int(params["budget"] * parameter_count(weight_map) / 8) - sum(nbytes(p, own) for p in chosen)
    free = [parameter for parameter in model if parameter not in chosen]
    options = [[(nbytes(p, tables[name]), losses[p.name][name]) for name in tables] for p in free]
    names = list(tables)
    uses = {p.name: names[index] for p, index in zip(free, choose_options(options, budget_bytes), strict=True)}
    rules = rules_of({name: use for name, use in uses.items() if not same(tables[use], own)})
    out.path("rules.json").write_bytes(canonical({"rules": rules}))
    stored = {p: nbytes(p, tables[uses[p.name]] if p.name in uses else own) for p in model}
    out.fact("bits_per_weight", bits(stored))
    out.fact("bits_of", {pattern: bits({p: stored[p] for p in some}) for pattern, some in alike(free).items()})
    out.fact("rules", rules)
    out.fact("expected_kl", float(f"{sum(losses[name][use] for name, use in uses.items()):.3g}"))


def bits(stored: Mapping[Parameter, int]) -> float:
    """Bits per weight of parameters that take so many bytes."""
    return round(8 * sum(stored.values()) / sum(prod(parameter.shape) for parameter in stored), 4)


def alike(model: Iterable[Parameter]) -> dict[str, list[Parameter]]:
    """Parameters that have the same place in their layers, by the pattern of their names."""
    found: dict[str, list[Parameter]] = {}
    for parameter in model:
        found.setdefault(pattern_of(parameter.name), []).append(parameter)
    return found


def nbytes(parameter: Parameter, rule: Scheme) -> int:
    """Bytes that are stored of a parameter."""
    return sum(piece.nbytes for piece in stored_tensors(parameter, rule))


def same(one: Scheme, other: Scheme) -> bool:
    """Whether two schemes pack alike, whatever they are called."""
    return replace(one, name="") == replace(other, name="")
