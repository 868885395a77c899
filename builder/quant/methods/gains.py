"""What schemes and methods were measured to lose of small trained models: what one may expect before it is tried.

Source: `build -m model=auto model.source=FOLDER quant=... quant.method=...` on 2026-12-01, of checkpoints that
tests/real_models.py makes, and of llama2.c's story teller; KL(original || built) in nats, the mean over 512 tokens
(Gemma: 127) of builder/demo/heldout.txt; awq and gptq calibrated on 16,384 tokens of builder/demo/calibration.txt.
docs/how-it-works/quality.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

HIGH_KL = 0.05  # nats: of ten tokens about one has another likeliest successor than the original's

SMALL = 1_000_000_000  # parameters; larger models lose less to 4 bits
_WORTH = 0.9  # of the loss, where it is least: a smaller gain is not worth a build
_LIKE = {3: "q3f16_1", 4: "q4f16_1"}  # by bits: the scheme whose figures stand for other layouts and dtypes
_MORE_BITS = {  # by dtype: a choice, its bits and group size, and the scheme whose figures stand for it
    "float16": (("q4f16_1", 4, 32, "q4f16_1"), ("q6f16_1", 6, 40, "q6f16_1"), ("q8f16_1", 8, 32, "q8f16_1")),
    "float32": (("q4f32_1", 4, 32, "q4f16_1"), ("q8f32_1", 8, 32, "q8f16_1")),
}
_METHODS = ("gptq", "awq", "mse")
_DEFAULT = "mse"

Choice = tuple[str, str]  # scheme, method

MEASURED: Mapping[str, Mapping[Choice, float]] = {
    "SmolLM2-135M": {
        ("q3f16_1", "mse"): 1.75,
        ("q4f16_1", "rtn"): 0.4736,
        ("q4f16_1", "mse"): 0.3985,
        ("q4f16_1", "awq"): 0.2512,
        ("q4f16_1", "gptq"): 0.2663,
        ("q6f16_1", "mse"): 0.02863,
        ("q8f16_1", "mse"): 0.00121,
    },
    "Gemma 3 270M": {
        ("q4f16_1", "rtn"): 0.556,
        ("q4f16_1", "mse"): 0.4375,
        ("q4f16_1", "awq"): 0.2131,
        ("q4f16_1", "gptq"): 0.2186,
        ("q6f16_1", "mse"): 0.0188,
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


class Gain(NamedTuple):
    """``change``: an override that loses less; ``share``: of the present loss, (least, most) over the models that were
    measured with both; ``scheme``, ``bits``, ``group_size``: what it packs into, "" and 0: the same bytes."""

    change: str
    share: tuple[float, float]
    method: str
    scheme: str = ""
    bits: int = 0
    group_size: int = 0


def gains(kind: str, bits: int, dtype: str, method: str) -> list[Gain]:
    """What is known to lose less than integers of ``bits`` in groups with scales of ``dtype``, chosen by ``method``:
    methods in the same bytes, the best first, then schemes of more bits."""
    if kind != "group" or bits not in _LIKE:
        return []
    now = (_LIKE[bits], method)
    methods = [
        Gain(f"quant.method={other}", shares, other) for other in _METHODS if (shares := _share(now, (now[0], other)))
    ]
    more = [
        Gain(f"quant={name}", shares, _DEFAULT, name, its_bits, group_size)
        for name, its_bits, group_size, like in _MORE_BITS.get(dtype, ())
        if its_bits > bits and (shares := _share(now, (like, _DEFAULT)))
    ]
    every = [*sorted(methods, key=lambda gain: sum(gain.share)), *more]
    return [gain for gain in every if gain.share[0] <= _WORTH and gain.share[1] < 1]


def models_with(bits: int, method: str) -> list[str]:
    """The models that the shares of ``gains`` are of."""
    return [model for model, loss in MEASURED.items() if (_LIKE.get(bits, ""), method) in loss]


def format_range(low: float, high: float) -> str:
    """ "0.45 to 0.78", "0.63"."""
    return f"{low:.2g}" if f"{low:.2g}" == f"{high:.2g}" else f"{low:.2g} to {high:.2g}"


def _share(now: Choice, other: Choice) -> tuple[float, float] | None:
    """(least, most) that ``other`` lost of what ``now`` lost; None where no model was measured with both."""
    shares = [loss[other] / loss[now] for loss in MEASURED.values() if now in loss and other in loss]
    return (min(shares), max(shares)) if shares else None
