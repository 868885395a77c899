"""Which method or scheme would lose less of a model, in how many bits, from what was measured of others
(quant/methods/gains.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from llm_build.architectures.weights import Parameter
from llm_build.config.schema import Quant, Recipe
from llm_build.planner.schemes import schemes
from llm_build.planner.schemes.stored_bits import stored_bits
from llm_build.quant.layout import parse_scheme
from llm_build.quant.methods.gains import HIGH_KL, Gain, format_range, gains, models_with

_ABOUT = 1.1  # times as many bytes: no reason to lose twice as much


class Way(NamedTuple):
    """``change``: the override that takes it; ``share``: of the present loss, (least, most) over models that were
    measured; ``bits``: per weight of the whole model, ``more``: than now; ``quant``: the scheme with its method."""

    change: str
    share: tuple[float, float]
    bits: float
    more: bool
    quant: Quant


def is_high(kl: float) -> bool:
    """Whether a loss is worth a word."""
    return kl > HIGH_KL


def ways(recipe: Recipe) -> list[Way]:
    """What would lose less and holds the model, the same bytes first; none where nothing better is known."""
    quant = recipe.quant
    if recipe.undecided or quant.packing or quant.zero_point:
        return []
    known = gains(quant.kind, quant.bits, quant.dtype, quant.method)
    model = schemes.parameters(recipe.family, recipe.architecture) if known else ()
    found = [way for gain in known if (way := _way(quant, gain, model))]
    return [way for way in found if not any(_is_better(other, way) for other in found)]


def _way(now: Quant, gain: Gain, model: Sequence[Parameter]) -> Way | None:
    """None where the model does not fit into the scheme."""
    own = stored_bits(model, parse_scheme(schemes.scheme_of(now))).total
    if not gain.scheme:
        return Way(gain.change, gain.share, own, False, replace(now, method=gain.method))
    other = Quant(
        gain.scheme, "group", now.dtype, gain.bits, gain.group_size, "NK", "uint32", method=gain.method
    )  # fmt: skip
    packer = parse_scheme(schemes.scheme_of(other))
    if not schemes.can_pack(packer, tuple(model)):
        return None
    bits = stored_bits(model, packer).total
    return Way(gain.change, gain.share, bits, bits > own, other)


def _is_better(other: Way, way: Way) -> bool:
    """Whether ``other`` loses much less in about as many bytes."""
    return other.bits <= way.bits * _ABOUT and other.share[1] < way.share[0] / 2


def measured_models(recipe: Recipe) -> str:
    """What the shares of ``ways`` were measured on."""
    return ", ".join(models_with(recipe.quant.bits, recipe.quant.method))


def format_kl(low: float, high: float) -> str:
    """ "0.15 to 0.18" """
    return format_range(low, high)


def identity(quant: Quant) -> Mapping[str, Any]:
    """What two builds share that store a model's weights in the same way."""
    return {"scheme": schemes.scheme_of(quant), "method": quant.method}
