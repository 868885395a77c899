"""How a user types what a step's parameters come from: reasons name the recipe's keys, not the parameters."""

from __future__ import annotations

RECIPE_KEYS = {  # path below a step's params -> key of a recipe; what is below goes with it
    "architecture": "model",
    "metadata": "model",
    "family": "model.family",
    "conv_template": "model.conv_template",
    "allow_nonfinite": "model.allow_nonfinite",
    "shards": "model.tensor_parallel_shards",
    "scheme": "quant",
    "quantization": "quant",
    "schemes": "quant.candidates",
    "candidates": "quant.candidates",
    "budget": "quant.budget",
    "max_shard_bytes": "quant.max_shard_bytes",
    "packing": "quant.packing",
    "method": "quant.method",
    "method.name": "quant.method",
    "method.damping": "quant.damping",
    "pin": "pins.checkpoint",
    "limits": "verify",
    "logits_bytes": "verify.logits_bytes",
}
CALIBRATION_KEYS = {**RECIPE_KEYS, **{name: f"quant.calibration.{name}" for name in ("text", "tokens", "window")}}
SENSITIVITY_KEYS = {**CALIBRATION_KEYS, "tokens": "quant.sensitivity_tokens"}
VERIFY_KEYS = {**RECIPE_KEYS, **{name: f"verify.{name}" for name in ("text", "tokens", "window")}}
