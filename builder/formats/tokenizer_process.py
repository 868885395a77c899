"""Run as a program: the tokenizer that transformers makes of a folder, as one tokenizer.json on standard output.

    python -P tokenizer_process.py FOLDER

Without torch, which transformers does not need for this and takes seconds to import.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys


def main(folder: str) -> None:
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    _hide("torch")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False).backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    whole = json.loads(tokenizer.to_str())
    whole["model"]["merges"] = _as_text(whole["model"]["merges"])
    json.dump(whole, sys.stdout)


def _as_text(merges: list[list[str] | str]) -> list[list[str] | str]:
    """Pairs as "a b", which readers of every age know, where no part holds a space."""
    if any(" " in part for pair in merges if not isinstance(pair, str) for part in pair):
        return merges
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]


def _hide(package: str) -> None:
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *rest: None if name == package else find(name, *rest)


if __name__ == "__main__":
    main(sys.argv[1])
