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
        ("q4f16_1", "rtn"): 0.4736,
        ("q4f16_1", "mse"): 0.3985,
        ("q4f16_1", "awq"): 0.2512,
        ("q4f16_1", "gptq"): 0.2663,
        ("q8f16_1", "mse"): 0.00121,
    },
    "Gemma 3 270M": {
        ("q4f16_1", "mse"): 0.4375,
        ("q8f16_1", "mse"): 0.00031,
    },
    "a story teller of 260K": {
        ("q3f16_1", "rtn"): 1.923,
        ("q3f16_1", "mse"): 0.9686,
        ("q3f16_1", "awq"): 0.7936,
        ("q3f16_1", "gptq"): 0.6197,
        ("q4f16_1", "rtn"): 0.3466,
        ("q4f16_1", "mse"): 0.2301,
        ("q4f16_1", "awq"): 0.2293,
        ("q4f16_1", "gptq"): 0.1762,
        ("q6f16_1", "mse"): 0.0182,
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
