"""Which scheme packs which parameter, so that a model fits into so many bytes and loses least: a knapsack.

Losses of parameters are added up, as if no two roundings met: on the demo the sum over all parameters is 88 to 92% of
what they lose together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np

from builder.quant.layout import layer_of, stem_of

UNITS = 1 << 16  # that the range of bytes is counted in, at most
Option = tuple[int, float]  # bytes, loss


def choose(options: Sequence[Sequence[Option]], room: int) -> list[int]:
    """The option of each parameter: least loss in all within ``room`` bytes, which the smallest options must fit.

    Dynamic programming over the bytes beyond the smallest options, in units of their greatest common divisor (a model's
    matrices are multiples of a few sizes). Beyond UNITS of them the unit is coarser and bytes are rounded up, so that
    the room is never exceeded. The unit does not depend on the room: with more of it every choice is still there, so
    that the loss can only fall. Of equal losses the earlier option is taken.
    """
    extras = [[nbytes - min(n for n, _ in some) for nbytes, _ in some] for some in options]
    spare = room - sum(min(nbytes for nbytes, _ in some) for some in options)
    assert spare >= 0, "the room was checked when the build was planned"
    largest = sum(max(some) for some in extras)
    unit = max(1, gcd(*(extra for some in extras for extra in some)), -(-largest // UNITS))
    costs = [[-(-extra // unit) for extra in some] for some in extras]
    most = sum(max(some) for some in costs)
    units = most if spare >= largest else min(spare // unit, most)
    least = np.zeros(units + 1)  # loss of the parameters so far, by the units that they may take
    picked = np.zeros((len(options), units + 1), np.uint8)
    for index, some in enumerate(options):
        found = np.full(units + 1, np.inf)
        for option, (_, loss) in enumerate(some):
            cost = costs[index][option]
            if cost <= units:
                losses = least[: units + 1 - cost] + loss
                better = losses < found[cost:]
                found[cost:][better] = losses[better]
                picked[index, cost:][better] = option
        least = found
    chosen, left = [], units
    for index in reversed(range(len(options))):
        chosen.append(int(picked[index, left]))
        left -= costs[index][chosen[-1]]
    return chosen[::-1]


def rules_of(chosen: Mapping[str, str]) -> list[dict[str, Any]]:
    """{parameter: scheme} as ``rules`` of a recipe: a pattern for each place in a layer, with the layers it is for.

    Parameters of one pattern have names that differ in the layer alone, so no rule matches another's parameter.
    """
    layers: dict[tuple[str, str], list[int]] = {}
    for name, use in chosen.items():
        layer = layer_of(name)
        layers.setdefault((pattern_of(name), use), []).extend([] if layer is None else [layer])
    grouped: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for (pattern, use), some in layers.items():
        grouped.setdefault((use, tuple(sorted(some))), []).append(pattern)
    rules = []
    for (use, found), patterns in grouped.items():
        match = patterns[0] if len(patterns) == 1 else patterns
        rules.append({"match": match, **({"layers": ranges(found)} if found else {}), "use": use})
    return rules


def pattern_of(name: str) -> str:
    """A parameter's name as rules match it, with "*" for its layer."""
    layer, done, parts = layer_of(name), False, []
    for part in stem_of(name).split("."):
        star = part.isdigit() and layer is not None and not done
        parts.append("*" if star else part)
        done = done or star
    return ".".join(parts)


def ranges(layers: Sequence[int]) -> list[int | list[int]]:
    """Sorted layers as rules write them: 0, 1, 2, 5 is [[0, 2], 5]."""
    found: list[list[int]] = []
    for layer in layers:
        if found and layer == found[-1][1] + 1:
            found[-1][1] = layer
        else:
            found.append([layer, layer])
    return [first if first == last else [first, last] for first, last in found]
