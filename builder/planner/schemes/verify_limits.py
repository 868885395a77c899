"""What verify holds one recipe to: the limits of its scheme, those that it sets itself, and a trained model's share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from builder.config.schema import Recipe
from builder.config.strict import as_plain_data
from builder.planner.schemes.schemes import activations_of
from builder.verification.limits import choose_limits


def limits_of(recipe: Recipe, scheme: Mapping[str, Any]) -> dict[str, float]:
    verify = recipe.verify
    over = {k: getattr(verify, k) for k in ("max_error", "rms_error", "kl", "top1", "perplexity")}
    rounded = [verify.exact_rounded[activation] for activation in activations_of(scheme)]
    exact = {
        "exact_max": max(verify.exact_max, *(limits.max_error for limits in rounded), 0.0),
        "exact_rms": max(verify.exact_rms, *(limits.rms_error for limits in rounded), 0.0),
    }
    if recipe.quant.packing and not recipe.quant.activation:  # the reference has the very same weights
        scheme = {"name": recipe.quant.method, "kind": "none", "bits": 0}
    if recipe.budget:  # which may not lose more than a scheme that it could pay everywhere
        scheme = recipe.budget.candidates[recipe.budget.plain]
    return choose_limits(scheme, {name: as_plain_data(limits) for name, limits in verify.limits.items()}, over, exact)


def trained_of(recipe: Recipe) -> dict[str, float]:
    """verify.trained; a limit that the recipe sets itself is not made tighter."""
    verify = recipe.verify
    return {k: v for k, v in as_plain_data(verify.trained).items() if k == "ratio" or getattr(verify, k) is None}
