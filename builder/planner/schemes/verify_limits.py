"""What verify holds one recipe to: limits of correctness, and those of cost that the recipe states."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_build.config.schema import Recipe
from llm_build.planner.schemes.schemes import activations_of
from llm_build.verification.limits import COST, stated_limits


def limits_of(recipe: Recipe, scheme: Mapping[str, Any]) -> dict[str, float]:
    verify = recipe.verify
    rounded = [verify.exact_rounded[activation] for activation in activations_of(scheme)]
    exact = {
        "exact_max": max(verify.exact_max, *(limits.max_error for limits in rounded), 0.0),
        "exact_rms": max(verify.exact_rms, *(limits.rms_error for limits in rounded), 0.0),
    }
    return stated_limits({name: getattr(verify, name) for name in COST}, exact)
