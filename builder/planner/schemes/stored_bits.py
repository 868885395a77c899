"""Stored bits per weight of a model in a scheme, from shapes alone: words that are not full, scales and zeros count."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from llm_build.architectures.weights import Parameter
from llm_build.config.schema import Recipe
from llm_build.planner.schemes import schemes
from llm_build.quant.layout import Scheme, is_quantized, parse_scheme, stored_tensors


class StoredBits(NamedTuple):
    """Bits per weight of the parameters that the scheme packs (None: it packs none), and of the whole model."""

    quantized: float | None
    total: float


def stored_bits_of(recipe: Recipe) -> StoredBits:
    """A recipe whose rules are decided."""
    model = schemes.parameters(recipe.family, recipe.architecture)
    return stored_bits(model, parse_scheme(schemes.scheme_of(recipe.quant)))


def stored_bits(model: Iterable[Parameter], scheme: Scheme) -> StoredBits:
    """``model``: all parameters; what is kept as it is counts in the total alone."""
    parameters = list(model)
    packed = [parameter for parameter in parameters if is_quantized(parameter, scheme)]
    return StoredBits(_bits_per_weight(packed, scheme) if packed else None, _bits_per_weight(parameters, scheme))


def _bits_per_weight(parameters: list[Parameter], scheme: Scheme) -> float:
    nbytes = sum(stored_nbytes(parameter, scheme) for parameter in parameters)
    return 8 * nbytes / sum(prod(parameter.shape) for parameter in parameters)


def stored_nbytes(parameter: Parameter, scheme: Scheme) -> int:
    return sum(tensor.nbytes for tensor in stored_tensors(parameter, scheme))
