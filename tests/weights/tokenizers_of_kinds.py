"""Small tokenizers of the two kinds that checkpoints have, trained here on a few lines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES = [
    "Once upon a time there was a small house.",
    "Warum? Weil der Käse rollt.",
    "こんにちは世界",
    "a b c 1 2 3 <>|_/",
] * 4
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(size: int = 300) -> Tokenizer:
    """GPT-2's kind: every byte is a letter of the alphabet; "<s>" is put before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return tokenizer


def byte_fallback() -> Tokenizer:
    """Llama 2's kind: words begin with a mark for the space, and what has no token is written byte by byte."""
    words = ["<unk>", "<s>", "</s>", *BYTES, "▁", *"abcdefghijklmnopqrstuvwxyz.?!ä", "▁a", "▁b", "th", "▁th", "▁the"]
    vocab = {word: number for number, word in enumerate(dict.fromkeys(words))}
    merges = [("▁", "a"), ("▁", "b"), ("t", "h"), ("▁", "th"), ("▁th", "e")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer | None, **files: Any) -> dict[str, Path]:
    """A folder with these files: "tokenizer_config" and so on, each an object. Returns {name: path}."""
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    for name, value in files.items():
        (folder / f"{name}.json").write_text(json.dumps(value))
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    return {path.name: path for path in folder.iterdir()}
