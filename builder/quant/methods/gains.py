"""What schemes and methods were measured to lose of small trained models: what one may expect before it is tried.

Source: `build -m model=auto model.source=FOLDER quant=... quant.method=...` on 2026-12-01, of checkpoints that
tests/real_models.py makes, and of llama2.c's story teller; KL(original || built) in nats, the mean over 512 tokens
(Gemma: 127) of builder/demo/heldout.txt; awq and gptq calibrated on 16,384 tokens of builder/demo/calibration.txt.
docs/how-it-works/quality.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping

HIGH_KL = 0.05  # nats: of ten tokens about one has another likeliest successor than the original's

Choice = tuple[str, str]  # scheme, method

MEASURED: Mapping[str, Mapping[Choice, float]] = {
    "SmolLM2-135M": {
        ("q4f16_1", "rtn"): 0.49,
        ("q4f16_1", "mse"): 0.40,
        ("q4f16_1", "awq"): 0.25,
        ("q4f16_1", "gptq"): 0.25,
        ("q8f16_1", "mse"): 0.0012,
    },
    "Gemma 3 270M": {
        ("q4f16_1", "rtn"): 0.59,
        ("q4f16_1", "mse"): 0.46,
        ("q4f16_1", "gptq"): 0.27,
    },
    "a story teller of 260K": {
        ("q3f16_1", "rtn"): 1.92,
        ("q3f16_1", "mse"): 0.97,
        ("q3f16_1", "awq"): 0.79,
        ("q3f16_1", "gptq"): 0.62,
        ("q4f16_1", "rtn"): 0.35,
        ("q4f16_1", "mse"): 0.23,
        ("q4f16_1", "awq"): 0.23,
        ("q4f16_1", "gptq"): 0.18,
        ("q6f16_1", "mse"): 0.018,
        ("q8f16_1", "mse"): 0.00079,
    },
}


def share(now: Choice, other: Choice) -> tuple[float, float] | None:
    """(least, most) that ``other`` lost of what ``now`` lost; None where no model was measured with both."""
    shares = [loss[other] / loss[now] for loss in MEASURED.values() if now in loss and other in loss]
    return (min(shares), max(shares)) if shares else None


def models_with(now: Choice) -> list[str]:
    """The models that ``share`` of ``now`` is of."""
    return [model for model, loss in MEASURED.items() if now in loss]
