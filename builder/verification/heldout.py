"""Held-out text as windows of token ids: the same ids for both references, whatever else they do."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import numpy as np

from llm_build.core.errors import UserError
from llm_build.core.step_io import File, Json
from llm_build.formats import tokenizer

READ_BYTES = 4 << 20  # of the text; more adds nothing to a few hundred tokens
_LEAST_WINDOW_TOKENS = 16
_SEED = 20


def windows(
    params: Mapping[str, Json], text: Path, tokenizer_json: File | None, config: Mapping[str, Json], key: str = "verify"
) -> np.ndarray:
    """Token ids of the held-out text.

    Args:
        params: "tokens" wanted in all, "window" tokens at most per sequence, "logits_bytes" that the float32 logits of
            all tokens may take, "text" {"name", "digest"}.
        text: UTF-8 text; its first 4 MB are used.
        tokenizer_json: the checkpoint's; None gives seeded random ids.
        config: the checkpoint's config.json.
        key: the recipe's section that gave the params, for messages.

    Returns:
        int32 [N, W], N >= 2 (interleaved sequences need two), spread evenly over the text, each with the tokenizer's
        beginning-of-sequence token in front if it has one.

    Raises:
        UserError: the text is not there, not UTF-8, too short; the tokenizer's ids do not fit the model.
    """
    vocab_size, positions = config["vocab_size"], config.get("max_position_embeddings", params["window"])
    tokens = min(params["tokens"], params["logits_bytes"] // (4 * vocab_size))
    window = min(params["window"], positions, tokens // 2)
    if window < _LEAST_WINDOW_TOKENS:
        raise UserError(
            f"{key} has {tokens} tokens in windows of {window}; it needs two windows of {_LEAST_WINDOW_TOKENS} or more",
            f"raise {key}.tokens or {key}.window"
            + (", or verify.logits_bytes, or build with verify=off" if key == "verify" else ""),
        )
    if tokenizer_json is None:
        return np.random.default_rng(_SEED).integers(0, vocab_size, (tokens // window, window), dtype=np.int32)
    ids, prefix = encode(read_text(text, params["text"]["digest"], key), tokenizer_json.path)
    if (largest := max(*ids, *prefix, 0)) >= vocab_size:
        raise UserError(
            f"tokenizer.json gives id {largest}; config.json has vocab_size {vocab_size}",
            "does tokenizer.json belong to this checkpoint?",
        )
    body = window - len(prefix)
    count = min(tokens // window, len(ids) // body)
    if count < 2:
        raise UserError(
            f"{key}.text: {params['text']['name']} has {len(ids)} tokens; two windows of {window} are needed",
            f"a longer text, or a smaller {key}.window",
        )
    starts = [i * (len(ids) - body) // (count - 1) for i in range(count)]
    return np.array([prefix + ids[start : start + body] for start in starts], dtype=np.int32)


def read_text(path: Path, digest: str, key: str) -> str:
    """The start of a UTF-8 file; ``digest`` is "sha256:<hex>" of all of it, as it was planned with."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{key}.text: cannot read {path}: {error.strerror}", f"{key}.text=/path/to/a.txt") from error
    if "sha256:" + sha256(data).hexdigest() != digest:
        raise UserError(f"{key}.text: {path} was changed while the build ran", "run the same command again")
    try:
        return data[:READ_BYTES].decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start > READ_BYTES - 4:  # the cut went through a character
            return data[: error.start].decode("utf-8")
        raise UserError(f"{key}.text: {path} is not UTF-8 (byte {error.start})", "give a plain text file") from error


def encode(text: str, tokenizer_json: Path) -> tuple[list[int], list[int]]:
    """Ids of the text without special tokens, and those that the tokenizer itself puts in front of any text."""
    read = tokenizer.load(tokenizer_json)
    ids = tokenizer.encode(read, text, special=False)
    probe = tokenizer.encode(read, "a", special=False)
    with_specials = tokenizer.encode(read, "a")
    starts = [i for i in range(len(with_specials) - len(probe) + 1) if with_specials[i : i + len(probe)] == probe]
    return ids, with_specials[: starts[0]] if starts else []
