"""Measure a checkpoint on its held-out text and let it speak, on the CPU in float32.

    python training/measure.py CHECKPOINT_FOLDER

The text is encoded whole; every window is BOS and the next CONTEXT_TOKENS - 1 tokens, without overlap, the last one
shorter; every token but BOS is scored. Perplexity is per token, bits per byte per byte of UTF-8.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizer import BOS_ID, CONTEXT_TOKENS
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaForCausalLM

PROMPTS = ("The function returns", "A context manager", "If the file does not exist,", "This module provides")
SAMPLE_TOKENS = 70
TEMPERATURE, TOP_P = 0.8, 0.9
SAMPLE_SEED = 1


@dataclass(frozen=True)
class Measure:
    """Losses of one text: nats over all scored tokens, and the sizes they are divided by."""

    nats: float
    n_tokens: int
    n_bytes: int

    @property
    def perplexity(self) -> float:
        return math.exp(self.nats / self.n_tokens)

    @property
    def bits_per_byte(self) -> float:
        return self.nats / math.log(2) / self.n_bytes


@torch.no_grad()
def measure(folder: Path) -> Measure:
    """The loss of the checkpoint in `folder` on the heldout.txt beside it."""
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    text = (folder / "heldout.txt").read_text(encoding="utf-8")
    ids = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    nats = 0.0
    for part in torch.tensor(ids).split(CONTEXT_TOKENS - 1):
        window = torch.cat([torch.tensor([BOS_ID]), part])
        logits = model(window[None]).logits[0, :-1]
        nats += F.cross_entropy(logits, part, reduction="sum").item()
    return Measure(nats, len(ids), len(text.encode()))


@torch.no_grad()
def speak(folder: Path, prompt: str, greedy: bool) -> str:
    """The prompt and its continuation."""
    torch.manual_seed(SAMPLE_SEED)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    choice = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if not greedy:
        choice = {"do_sample": True, "temperature": TEMPERATURE, "top_p": TOP_P, "top_k": 0}
    made = model.generate(ids, max_new_tokens=SAMPLE_TOKENS, pad_token_id=1, **choice)
    return tokenizer.decode(made[0], skip_special_tokens=True)


def main(folder: Path) -> None:
    """Print the numbers and the samples of the model card."""
    found = measure(folder)
    print(f"{found.n_bytes} bytes, {found.n_tokens} tokens")
    print(f"perplexity {found.perplexity:.3f}, bits per byte {found.bits_per_byte:.4f}")
    for prompt in PROMPTS:
        for greedy in (True, False):
            print(f"\n[{'greedy' if greedy else f'temperature {TEMPERATURE}'}]\n{speak(folder, prompt, greedy)}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} CHECKPOINT_FOLDER")
    main(Path(sys.argv[1]))
