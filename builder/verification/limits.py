"""Which limits hold for a build. Standard library only: the planner asks.

Limits of correctness follow the arithmetic: what transformers itself loses in float32 against float64 on this very
model, times a margin, but never less than verify.exact_max and verify.exact_rms, nor than what a library whose products
take 16-bit numbers loses by that. Limits of cost are those that the
recipe states; without one, cost is measured and no limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt

COST = ("max_error", "rms_error", "kl", "top1", "perplexity")
ROUNDING_MARGIN = 20.0  # our sums have another order, and all paths and tokens are compared, not the 32 measured ones

UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half of the distance from 1 to the next number
_ROUNDED_MAX, _ROUNDED_RMS = 12.0, 2.0  # of a layer's roundoff: an H200 came to 3.1 and 0.55 at most (tools/gpu/check)


def stated_limits(stated: Mapping[str, float | None], exact: Mapping[str, float]) -> dict[str, float]:
    """The limits of one build, flat.

    Args:
        stated: verify.max_error and so on; None is no limit.
        exact: "exact_max", "exact_rms": what is allowed in any case.
    """
    return {name: value for name, value in stated.items() if value is not None} | dict(exact)


def with_rounding(limits: Mapping[str, float], rounding: Mapping[str, float]) -> dict[str, float]:
    """The limits of a model whose own rounding is {"max", "rms"}, in units of the spread."""
    exact = {f"exact_{name}": ROUNDING_MARGIN * float(value) for name, value in rounding.items()}
    return {name: max(limit, exact.get(name, limit)) for name, limit in limits.items()}


def with_arithmetic(limits: Mapping[str, float], dtype: str, layers: int) -> dict[str, float]:
    """The limits of a library that rounds the inputs of its products to ``dtype`` and sums in float32.

    Each input is off by a roundoff at most, independently of the others, so that a layer adds about as much noise to
    the residual stream, relative to what it adds; noise of layers adds up like the square root of their number (Higham
    and Mary 2019, doi:10.1137/18M1226312)."""
    unit = UNIT_ROUNDOFF.get(dtype, 0.0) * sqrt(layers)
    least = {"exact_max": _ROUNDED_MAX * unit, "exact_rms": _ROUNDED_RMS * unit}
    return {name: max(limit, least.get(name, limit)) for name, limit in limits.items()}
