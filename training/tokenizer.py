"""Train the demo model's tokenizer: a byte-level BPE of VOCAB_SIZE entries, special tokens included.

    python training/tokenizer.py TEXT_FOLDER OUT_FOLDER

Reads train.txt only. Writes tokenizer.json and tokenizer_config.json, which AutoTokenizer loads. Encoding puts BOS
first; a document of the training stream is `<s> text </s>`. Numbers are cut into three digits; a blank line is a token.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from prepare import DOCUMENT_END
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 3072
CONTEXT_TOKENS = 1024
BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
PIECES = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\n+|\s+(?!\S)|\s+"

TOKENIZER_CONFIG = {
    "add_bos_token": True,
    "add_eos_token": False,
    "bos_token": BOS,
    "clean_up_tokenization_spaces": False,
    "eos_token": EOS,
    "model_max_length": CONTEXT_TOKENS,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def train_tokenizer(documents: list[str]) -> Tokenizer:
    """The tokenizer learned from the documents."""
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert (tokenizer.token_to_id(BOS), tokenizer.token_to_id(EOS)) == (BOS_ID, EOS_ID)
    return tokenizer


def main(texts: Path, out: Path) -> None:
    """Write the two tokenizer files into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    documents = (texts / "train.txt").read_text().split(DOCUMENT_END)
    train_tokenizer(documents).save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_CONFIG, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: {sys.argv[0]} TEXT_FOLDER OUT_FOLDER")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
