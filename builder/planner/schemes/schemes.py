"""The scheme of a recipe: its rules resolved, and checked against the model that it shall pack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llm_build import architectures
from llm_build.architectures.weights import Parameter
from llm_build.config.choices import Folders, choices_of, unknown_choice
from llm_build.config.schema import Quant
from llm_build.config.strict import as_plain_data, parse
from llm_build.core.errors import Unsupported, UserError
from llm_build.quant import rules
from llm_build.quant.layout import OPTIONAL, Scheme, parse_scheme, stored_tensors

_KINDS = {"none": "floats", "group": "integers", "int8": "integers", "e4m3": "8-bit floats", "e5m2": "8-bit floats"}
_IMPORTED = "imported"  # the choice that is no scheme until a quantized checkpoint says which: see imported.py
NOT_SCHEME = (
    "max_shard_bytes",
    "method",
    "packing",
    "damping",
    "calibration",
    "budget",
    "candidates",
    "sensitivity_tokens",
)


def scheme_of(quant: Quant) -> dict[str, Any]:
    """The scheme itself: the packed format. Not the size of the files, nor how the integers are chosen."""
    table = {k: v for k, v in as_plain_data(quant).items() if k not in NOT_SCHEME}
    for key, value in OPTIONAL.items():
        if table.get(key) == value:
            del table[key]
    return table


def activations_of(table: Mapping[str, Any]) -> list[str]:
    """What a scheme and those of its rules round inputs to."""
    used = [table, *(rule["use"] for rule in table.get("rules", ()))]
    return sorted({one["activation"] for one in used if one.get("activation")})


def table_of_choice(name: str, folders: Folders) -> dict[str, Any]:
    """A choice of conf/quant by name, as ``scheme_of`` gives it."""
    from llm_build.config.yaml_files import read_mapping

    known = choices_of("quant", folders)
    if name not in known:
        raise unknown_choice("quant", name, list(known))
    return scheme_of(parse(Quant, read_mapping(known[name]), f"quant={name}"))


def resolve_rules(quant: Quant, family: str, architecture: Mapping[str, Any], folders: Folders) -> Quant:
    """The rules with their layers counted and their schemes spelled out, so that keys hold content, not names."""
    if not quant.rules:
        return quant
    names = [parameter.name for parameter in parameters(family, architecture)]
    return replace(
        quant, rules=rules.resolve(quant.rules, names, quant.dtype, lambda name: table_of_choice(name, folders))
    )


def parameters(family: str, architecture: Mapping[str, Any]) -> tuple[Parameter, ...]:
    module = architectures.load(family)
    table: tuple[Parameter, ...] = module.parameters(module.from_architecture(architecture))
    return table


def check_fits(family: str, architecture: Mapping[str, Any], quant: Quant, folders: Folders) -> None:
    """Raises UserError when the scheme cannot hold one of the model's parameters, with the nearest that can."""
    wanted, model = parse_scheme(scheme_of(quant)), parameters(family, architecture)
    try:
        check_can_pack(wanted, model)
    except UserError as error:
        best = nearest_scheme(
            wanted, {name: it for name, it in choices_without_rules(folders).items() if can_pack(it, model)}
        )
        raise Unsupported(error.message, f"build quant={best}   the nearest scheme that can") from error


def schemes_that_quantize(folders: Folders) -> list[str]:
    """Every choice of conf/quant that quantizes a checkpoint, or keeps its weights."""
    return [name for name in choices_of("quant", folders) if name != _IMPORTED]


def choices_without_rules(folders: Folders) -> dict[str, Scheme]:
    """Every choice of conf/quant that has no rules, which ask for a model to be resolved."""
    tables = {name: table_of_choice(name, folders) for name in schemes_that_quantize(folders)}
    return {name: parse_scheme(table) for name, table in tables.items() if not table.get("rules")}


def nearest_scheme(wanted: Scheme, candidates: Mapping[str, Scheme]) -> str:
    """The name of the candidate that is most like ``wanted``, "" without candidates.

    Integers or floats counts first, then activations, dtype, bits, kind, layout, group size.
    """

    def distance(name: str) -> tuple[Any, ...]:
        candidate = candidates[name]
        kind = (_KINDS[candidate.kind] != _KINDS[wanted.kind], candidate.activation != wanted.activation)
        size = (candidate.dtype != wanted.dtype, abs(candidate.bits - wanted.bits), candidate.kind != wanted.kind)
        return *kind, *size, candidate.layout != wanted.layout, abs(candidate.group_size - wanted.group_size), name

    return min(candidates, key=distance, default="")


def check_can_pack(candidate: Scheme, model: tuple[Parameter, ...]) -> None:
    """Raises UserError for the first parameter that the scheme cannot pack, or whose inputs it cannot round."""
    mixtures = {parameter.name.split(".gate.")[0] for parameter in model if parameter.kind == "router"}
    for parameter in model:
        stored_tensors(parameter, candidate)
        block = parameter.name.rsplit(".", 2)[0]
        if parameter.kind == "linear" and block in mixtures and candidate.for_parameter(parameter.name).activation:
            raise UserError(
                f"{candidate.name} rounds the inputs of layers, but not those of experts: {parameter.name}; a rule for "
                '["*.gate_up_proj", "*.down_proj"] can give them a scheme that does not'
            )


def can_pack(candidate: Scheme, model: tuple[Parameter, ...]) -> bool:
    try:
        check_can_pack(candidate, model)
    except UserError:
        return False
    return True
