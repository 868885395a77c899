"""Which scheme packs which parameter, so that a model fits into so many bytes and loses least: a knapsack.

Losses of parameters are added up, as if no two roundings met: on the demo the sum over all parameters is 88 to 92% of
what they lose together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import numpy as np

from llm_build.quant.layout import layer_of, stem_of

UNITS = 1 << 16  # that the range of bytes is counted in, at most
Option = tuple[int, float]  # bytes, loss


def choose_options(options: Sequence[Sequence[Option]], budget_bytes: int) -> list[int]:
    """The option of each parameter: least loss in all within the budget, which the smallest options must fit.

    Dynamic programming over the bytes beyond the smallest options, in units of their greatest common divisor (a model's
    matrices are multiples of a few sizes). Beyond UNITS of them the unit is coarser and bytes are rounded up, so that
    the budget is never exceeded. The unit does not depend on the budget: with more of it every choice is still there,
    so that the loss can only fall. Of equal losses the earlier option is taken.
    """
    extras = [[nbytes - min(n for n, _ in parameter) for nbytes, _ in parameter] for parameter in options]
    spare = budget_bytes - sum(min(nbytes for nbytes, _ in parameter) for parameter in options)
    assert spare >= 0, "the budget was checked when the build was planned"
    largest = sum(max(parameter) for parameter in extras)
    unit = max(1, gcd(*(extra for parameter in extras for extra in parameter)), -(-largest // UNITS))
    costs = [[-(-extra // unit) for extra in parameter] for parameter in extras]
    most = sum(max(parameter) for parameter in costs)
    units = most if spare >= largest else min(spare // unit, most)
    least = np.zeros(units + 1)  # loss of the parameters so far, by the units that they may take
    picked = np.zeros((len(options), units + 1), np.uint8)
    for index, parameter in enumerate(options):
        best = np.full(units + 1, np.inf)
        for option, (_, loss) in enumerate(parameter):
            cost = costs[index][option]
            if cost <= units:
                losses = least[: units + 1 - cost] + loss
                better = losses < best[cost:]
                best[cost:][better] = losses[better]
                picked[index, cost:][better] = option
        least = best
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
    for (pattern, use), numbers in layers.items():
        grouped.setdefault((use, tuple(sorted(numbers))), []).append(pattern)
    rules = []
    for (use, in_layers), patterns in grouped.items():
        match = patterns[0] if len(patterns) == 1 else patterns
        rules.append({"match": match, **({"layers": ranges(in_layers)} if in_layers else {}), "use": use})
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
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][1] + 1:
            spans[-1][1] = layer
        else:
            spans.append([layer, layer])
    return [first if first == last else [first, last] for first, last in spans]
