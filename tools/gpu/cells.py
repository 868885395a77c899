"""What is built and run on a GPU: a cell is a family and a scheme."""

from __future__ import annotations

FAMILIES = ("llama", "gpt_neox")  # llama: the demo; gpt_neox: random weights
SCHEMES = ("q0f16", "q4f16_1", "q8f16_1", "w8a8", "e4m3_f16", "e4m3_e4m3_f16")
CELLS = tuple(f"{family}-{scheme}" for family in FAMILIES for scheme in SCHEMES)
PROMPT = "The function returns"
GREEDY_TOKENS = 64
TIE = 1e-3  # logits that are closer may change places
