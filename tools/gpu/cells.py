"""What is built and run on a GPU: a cell is a family and a scheme."""

from __future__ import annotations

FAMILIES = ("llama", "gpt_neox")  # llama: the demo; gpt_neox: random weights
SCHEMES = ("q0f16", "q4f16_1", "q8f16_1", "w8a8", "e4m3_f16", "e4m3_e4m3_f16")
STORED = ("q3f16_1", "q4f16_0", "q4bf16_1", "q4f16_zp32", "q6f16_1", "e5m2_f16")  # other ways to store weights
CELLS = (*(f"{family}-{scheme}" for family in FAMILIES for scheme in SCHEMES), *(f"llama-{each}" for each in STORED))
PROMPT = "The function returns"
GREEDY_TOKENS = 64
TIE = {"float32": 1e-3, "float16": 2e-2, "bfloat16": 1e-1}  # logits that are closer may change places
