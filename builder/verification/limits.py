"""Which limits hold for a build. Standard library only: the planner asks.

Limits of correctness follow the arithmetic: what transformers itself loses in float32 against float64 on this very
model, times a margin, but never less than verify.exact_max and verify.exact_rms. Limits of cost are those that the
recipe states; without one, cost is measured and no limit.
"""

from __future__ import annotations

from collections.abc import Mapping

COST = ("max_error", "rms_error", "kl", "top1", "perplexity")
ROUNDING_MARGIN = 20.0  # our sums have another order, and all paths and tokens are compared, not the 32 measured ones


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
