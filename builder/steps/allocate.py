"""allocate: the rules that quant.budget stands for, from what sensitivity measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from math import prod

from llm_build.architectures.weights import Parameter, parameter_count, read_map
from llm_build.core.digest import canonical
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.quant.allocation import choose_options, pattern_of, rules_of
from llm_build.quant.layout import Scheme, is_quantized, parse_scheme, stored_tensors
from llm_build.steps.ports import one


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write rules.json: {"rules"}, as a recipe writes them.

    What the recipe's own scheme leaves as it is stays so, and every other parameter gets one of the candidates. Where
    that is the scheme itself no rule is needed.

    Args:
        params: "budget" in bits per weight, "scheme" the recipe's own, "candidates" {name: scheme}.
        inputs: "weight_map", "sensitivity" (sensitivity.json).
    """
    entries = read_map(json.loads(one(inputs["weight_map"]).path.read_bytes())).entries
    losses = json.loads(one(inputs["sensitivity"]).path.read_bytes())["losses"]
    own, tables = (
        parse_scheme(params["scheme"]),
        {name: parse_scheme(table) for name, table in params["candidates"].items()},
    )
    model = [entry.parameter for entry in entries]
    unpacked = {parameter: own for parameter in model if not is_quantized(parameter, own)}
    unpacked_bytes = sum(_stored_bytes(parameter, own) for parameter in unpacked)
    budget_bytes = int(params["budget"] * parameter_count(entries) / 8) - unpacked_bytes
    packed = [parameter for parameter in model if parameter not in unpacked]
    options = [[(_stored_bytes(p, tables[name]), losses[p.name][name]) for name in tables] for p in packed]
    names = list(tables)
    uses = {p.name: names[index] for p, index in zip(packed, choose_options(options, budget_bytes), strict=True)}
    rules = rules_of({name: use for name, use in uses.items() if not _packs_alike(tables[use], own)})
    out.path("rules.json").write_bytes(canonical({"rules": rules}))
    stored = {p: _stored_bytes(p, tables[uses[p.name]] if p.name in uses else own) for p in model}
    out.fact("bits_per_weight", _bits_per_weight(stored))
    by_pattern = _by_pattern(packed).items()
    bits_of = {pattern: _bits_per_weight({p: stored[p] for p in parameters}) for pattern, parameters in by_pattern}
    out.fact("bits_of", bits_of)
    out.fact("rules", rules)
    out.fact("expected_kl", float(f"{sum(losses[name][use] for name, use in uses.items()):.3g}"))


def _bits_per_weight(stored: Mapping[Parameter, int]) -> float:
    """Bits per weight of parameters that take so many bytes."""
    return round(8 * sum(stored.values()) / sum(prod(parameter.shape) for parameter in stored), 4)


def _by_pattern(model: Iterable[Parameter]) -> dict[str, list[Parameter]]:
    """Parameters that have the same place in their layers, by the pattern of their names."""
    by_pattern: dict[str, list[Parameter]] = {}
    for parameter in model:
        by_pattern.setdefault(pattern_of(parameter.name), []).append(parameter)
    return by_pattern


def _stored_bytes(parameter: Parameter, rule: Scheme) -> int:
    """Bytes that are stored of a parameter."""
    return sum(tensor.nbytes for tensor in stored_tensors(parameter, rule))


def _packs_alike(one: Scheme, other: Scheme) -> bool:
    """Whether two schemes pack alike, whatever they are called."""
    return replace(one, name="") == replace(other, name="")
