"""What verify writes is JSON whatever was measured, and its words blame what is at fault."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from llm_build.core.errors import StepError
from llm_build.core.json_text import indented
from llm_build.verification.limits import with_rounding
from llm_build.verification.measure import Divergence, Errors
from llm_build.verification.paths import ONE_SHOT
from llm_build.verification.reconstruction import equal_rows
from llm_build.verification.results import PathResult, VerifyResult, check_limits

LIMITS = {"exact_max": 1e-3, "exact_rms": 1e-4}


def result(error: float, weights: dict[str, Any]) -> VerifyResult:
    errors, same = Errors(error, error, 0), Divergence(0.0, 0.0, 1.0, 1.0, 0)
    path = PathResult([(0, 0)], errors, same, errors, error)
    perplexity = dict.fromkeys(("original", "dequantized", "built"), 5.0)
    return VerifyResult("x", "q0f32", {ONE_SHOT: path}, perplexity, weights, {"kl": 1.0, "perplexity": 9.0})


def test_numbers_that_json_cannot_hold_are_words():
    report = result(float("inf"), {"wrong": [{"steps": float("nan")}]}).json()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    read = json.loads(indented(report), parse_constant=refuse)
    assert read["paths"][ONE_SHOT]["exact"]["max_error"] == "inf"
    assert read["weights"]["wrong"][0]["steps"] == "nan"
    assert with_rounding(LIMITS, json.loads('{"max": "inf"}'))["exact_max"] == float("inf")


def test_a_router_that_cannot_tell_two_experts_apart_is_named():
    """transformers and the library may each take another of the two: no other model, and no fault of a kernel."""
    router = np.float32([[1, 2], [3, 4], [1, 2]])
    assert equal_rows(router) == (0, 2)
    assert equal_rows(router[:2]) is None
    weights = {"wrong": [], "equal_experts": {"model.layers.0.mlp.gate.weight": equal_rows(router)}}
    with pytest.raises(StepError) as caught:
        check_limits(result(0.5, weights), LIMITS)
    assert "model.layers.0.mlp.gate.weight scores experts 0 and 2 the same" in caught.value.hint
    with pytest.raises(StepError) as caught:
        check_limits(result(0.5, {"wrong": []}), LIMITS)
    assert "experts" not in caught.value.hint
