"""Which method or scheme would lose less of a model, and how much less, from what was measured of others.

Integers in groups of 3 or 4 bits cost small models much. Something better is known where quant/methods/gains.py has
figures of it: another method in the same bytes, or a scheme of more bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

from llm_build.config.schema import Quant, Recipe
from llm_build.planner.schemes import schemes
from llm_build.planner.schemes.stored_bits import stored_bits
from llm_build.quant.layout import parse_scheme
from llm_build.quant.methods.gains import HIGH_KL, Choice, models_with, share

_SMALL = 1_000_000_000  # parameters; larger models lose less to 4 bits
_WORTH = 0.9  # of the loss, where it is least: a smaller gain is not worth a build
_LIKE = {3: "q3f16_1", 4: "q4f16_1"}  # by bits: the scheme whose figures stand for other layouts and dtypes
_MORE_BITS = {  # by dtype: a choice, its bits and group size, and the scheme whose figures stand for it
    "float16": (("q4f16_1", 4, 32, "q4f16_1"), ("q6f16_1", 6, 40, "q6f16_1"), ("q8f16_1", 8, 32, "q8f16_1")),
    "float32": (("q4f32_1", 4, 32, "q4f16_1"), ("q8f32_1", 8, 32, "q8f16_1")),
}
_ABOUT = 1.1  # times as many bytes
_METHODS = ("gptq", "awq", "mse")
_DEFAULT = "mse"


class Way(NamedTuple):
    """``change``: the override that takes it; ``share``: of the present loss, (least, most) over MEASURED models;
    ``bits``: per weight; ``quant``: the scheme with its method."""

    change: str
    share: tuple[float, float]
    bits: float
    quant: Quant


def is_high(kl: float) -> bool:
    """Whether a loss is worth a word."""
    return kl > HIGH_KL


def own_bits(recipe: Recipe) -> float:
    """Stored bits per weight of the whole model."""
    return _bits(recipe, recipe.quant)


def ways(recipe: Recipe) -> list[Way]:
    """What would lose less, the same bytes first; none where nothing better is known."""
    now = _known_choice(recipe)
    if now is None:
        return []
    found = [*_methods(recipe, now), *_more_bits(recipe, now)]
    return [way for way in found if not any(_is_better(other, way) for other in found)]


def measured_models(recipe: Recipe) -> str:
    """What the shares of ``ways`` were measured on."""
    now = _known_choice(recipe)
    return ", ".join(models_with(now)) if now else ""


def _known_choice(recipe: Recipe) -> Choice | None:
    """What a recipe's scheme is called in the figures, None where there are none of its kind."""
    quant = recipe.quant
    is_packed_here = quant.kind == "group" and not (quant.zero_point or quant.packing or recipe.undecided)
    return (_LIKE[quant.bits], quant.method) if is_packed_here and quant.bits in _LIKE else None


def _is_better(other: Way, way: Way) -> bool:
    """Whether ``other`` loses much less in about as many bytes."""
    return other.bits <= way.bits * _ABOUT and other.share[1] < way.share[0] / 2


def _methods(recipe: Recipe, now: Choice) -> list[Way]:
    """Methods that lose less in the same bytes, the best first."""
    found = {method: share(now, (now[0], method)) for method in _METHODS}
    better = {method: shares for method, shares in found.items() if shares and shares[0] <= _WORTH and shares[1] < 1}
    bits = own_bits(recipe)
    return [
        Way(f"quant.method={method}", better[method], bits, replace(recipe.quant, method=method))
        for method in sorted(better, key=lambda method: sum(better[method]))
    ]


def _more_bits(recipe: Recipe, now: Choice) -> list[Way]:
    """Schemes of more bits that the model fits into, the fewest first."""
    found = []
    for name, bits, group_size, like in _MORE_BITS.get(recipe.quant.dtype, ()):
        shares = share(now, (like, _DEFAULT))
        quant = Quant(
            name, "group", recipe.quant.dtype, bits, group_size, "NK", "uint32", max_shard_bytes=1, method=_DEFAULT
        )
        if bits > recipe.quant.bits and shares and shares[0] <= _WORTH and _fits(recipe, quant):
            found.append(Way(f"quant={name}", shares, _bits(recipe, quant), quant))
    return found


def _fits(recipe: Recipe, quant: Quant) -> bool:
    model = schemes.parameters(recipe.family, recipe.architecture)
    return schemes.can_pack(parse_scheme(schemes.scheme_of(quant)), model)


def _bits(recipe: Recipe, quant: Quant) -> float:
    model = schemes.parameters(recipe.family, recipe.architecture)
    return stored_bits(model, parse_scheme(schemes.scheme_of(quant))).total


def card_notes(recipe: Recipe) -> dict[str, Any]:
    """For the card of a small model in few bits, which is written before it is known what that costs: {"ways": lines,
    "measured": models}, or nothing."""
    model = schemes.parameters(recipe.family, recipe.architecture)
    found = ways(recipe) if sum(prod(parameter.shape) for parameter in model) < _SMALL else []
    if not found:
        return {}
    own = own_bits(recipe)
    lines = [
        f"`{way.change}`: {'the same bytes' if way.bits == own else f'{way.bits:.2f} bits per weight'}, "
        f"{format_range(*way.share)} of the loss"
        for way in found
    ]
    return {"ways": lines, "measured": measured_models(recipe), "above": HIGH_KL}


def format_range(low: float, high: float) -> str:
    """ "0.45 to 0.78", "0.63"."""
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"


def identity(quant: Quant) -> Mapping[str, Any]:
    """What two builds share that store a model's weights in the same way."""
    return {"scheme": schemes.scheme_of(quant), "method": quant.method}
