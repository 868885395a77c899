"""The scheme of a recipe: its rules resolved, and checked against the model that it shall pack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from builder import architectures
from builder.architectures.weights import Parameter
from builder.compose import Folders, choices_of, unknown_choice
from builder.core.errors import UserError
from builder.parse import parse
from builder.quant import rules
from builder.quant.layout import Scheme, packed, scheme
from builder.recipe import Quant

NOT_SCHEME = ("max_shard_bytes", "method", "damping", "calibration")


def scheme_of(quant: Quant) -> dict[str, Any]:
    """The scheme itself: the packed format. Not the size of the files, nor how the integers are chosen."""
    table = {k: v for k, v in asdict(quant).items() if k not in NOT_SCHEME}
    if not quant.rules:
        del table["rules"]
    return table


def shipped(name: str, folders: Folders) -> dict[str, Any]:
    """A choice of conf/quant by name, as ``scheme_of`` gives it."""
    import yaml

    known = choices_of("quant", folders)
    if name not in known:
        raise unknown_choice("quant", name, list(known))
    return scheme_of(parse(Quant, yaml.safe_load(known[name].read_text("utf-8")), f"quant={name}"))


def with_rules(quant: Quant, family: str, architecture: Mapping[str, Any], folders: Folders) -> Quant:
    """The rules with their layers counted and their schemes spelled out, so that keys hold content, not names."""
    if not quant.rules:
        return quant
    names = [parameter.name for parameter in parameters(family, architecture)]
    return replace(quant, rules=rules.resolve(quant.rules, names, quant.dtype, lambda name: shipped(name, folders)))


def parameters(family: str, architecture: Mapping[str, Any]) -> tuple[Parameter, ...]:
    module = architectures.load(family)
    found: tuple[Parameter, ...] = module.parameters(module.from_architecture(architecture))
    return found


def check_fits(family: str, architecture: Mapping[str, Any], quant: Quant, folders: Folders) -> None:
    """Raises UserError when the scheme cannot hold one of the model's parameters, with the nearest that can."""
    wanted, model = scheme(scheme_of(quant)), parameters(family, architecture)
    try:
        for parameter in model:
            packed(parameter, wanted)
    except UserError as error:
        best = nearest(wanted, model, folders)
        raise UserError(error.message, f"build quant={best}   the nearest scheme that can") from error


def nearest(wanted: Scheme, model: tuple[Parameter, ...], folders: Folders) -> str:
    """The choice of conf/quant that can hold the model and is most like ``wanted``.

    Kind counts first, then dtype, bits, layout, group size.
    """

    def distance(found: Scheme) -> tuple[Any, ...]:
        other = (found.kind != wanted.kind, found.dtype != wanted.dtype, abs(found.bits - wanted.bits))
        return *other, found.layout != wanted.layout, abs(found.group_size - wanted.group_size), found.name

    fitting = []
    for name in choices_of("quant", folders):
        table = shipped(name, folders)
        if table.get("rules") or not holds(scheme(table), model):
            continue
        fitting.append((distance(scheme(table)), name))
    return min(fitting)[1]


def holds(candidate: Scheme, model: tuple[Parameter, ...]) -> bool:
    try:
        return bool([packed(parameter, candidate) for parameter in model])
    except UserError:
        return False
