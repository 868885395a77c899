"""Text from a built artifact: tokenize, prefill, sample, decode, detokenize as it comes."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from builder.core.errors import UserError
from builder.runtime.engine import Engine, Floats

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of bytes that are not yet a character
_CONTEXT_TOKENS = 6  # tokens decoded before the new ones, so that spaces and accents come out as in the whole text


@dataclass(slots=True)
class GenerationStats:
    """Why a text ended and how long it took; filled in when the last piece was yielded."""

    reason: str = ""  # "eos", "max_tokens" or "context"
    prompt_tokens: int = 0
    tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """``temperature`` 0 takes the likeliest token; ``top_p`` keeps the likeliest tokens that hold this probability."""

    temperature: float = 0.7
    top_p: float = 0.95
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise UserError(f"temperature: found {self.temperature}; allowed: 0 (always the likeliest token) to 100")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: found {self.top_p}; allowed: above 0, up to 1")


@dataclass(slots=True)
class Streamer:
    """Tokens -> text, never half a character."""

    tokenizer: Any
    tokens: list[int] = field(default_factory=list)
    start: int = 0  # of the window that is decoded again for each token
    emitted: str = ""  # the part of the window's text that was returned

    def add(self, token: int) -> str:
        """The text that this token completes; often a word, sometimes nothing."""
        self.tokens.append(token)
        text = self.tokenizer.decode(self.tokens[self.start :], skip_special_tokens=True)
        if text.endswith(_UNFINISHED):
            return ""
        piece = text[len(self.emitted) :]
        self.start = max(self.start, len(self.tokens) - _CONTEXT_TOKENS)
        self.emitted = self.tokenizer.decode(self.tokens[self.start :], skip_special_tokens=True)
        return str(piece)

    def finish(self) -> str:
        """What is left at the end: a character that was never completed shows as a replacement mark."""
        text = self.tokenizer.decode(self.tokens[self.start :], skip_special_tokens=True)
        return str(text[len(self.emitted) :])


def load_tokenizer(path: Path) -> Any:
    """A tokenizers.Tokenizer from tokenizer.json."""
    from tokenizers import Tokenizer

    if not path.is_file():
        raise UserError(f"{path} does not exist: this model has no tokenizer.json, so no text can be made with it")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise UserError(f"{path} is not a tokenizer.json: {error}") from error


def eos_tokens(config: Mapping[str, Any]) -> set[int]:
    """The end-of-text ids of an mlc-chat-config.json (or a config.json): none, one, or several."""
    ids = config.get("eos_token_id")
    return {ids} if isinstance(ids, int) else set(ids or ())


def _end_tokens(tokenizer_path: Path) -> set[int]:
    """Where the text ends, as the artifact beside the tokenizer says; no such file: never."""
    chat = tokenizer_path.with_name("mlc-chat-config.json")
    return eos_tokens(json.loads(chat.read_text())) if chat.is_file() else set()


def sample(logits: Floats, sampling: Sampling, random: np.random.Generator) -> int:
    """One token from logits [V]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = (logits - logits.max()).astype(np.float64) / sampling.temperature
    weights = np.exp(scaled)
    if sampling.top_p >= 1:
        edges = weights.cumsum()
        return int(edges.searchsorted(random.random() * edges[-1], side="right").clip(0, logits.size - 1))
    order = np.argsort(-weights, kind="stable")
    edges = weights[order].cumsum()
    kept = int(np.searchsorted(edges, sampling.top_p * edges[-1])) + 1
    place = np.searchsorted(edges[:kept], random.random() * edges[kept - 1], side="right")
    return int(order[min(int(place), kept - 1)])


def generate(
    engine: Engine,
    tokenizer_path: Path,
    prompt: str,
    max_tokens: int = 256,
    temperature: float = 0.7,
    top_p: float = 0.95,
    seed: int | None = None,
    eos: Collection[int] | None = None,
    stats: GenerationStats | None = None,
) -> Iterator[str]:
    """Stream the continuation of ``prompt``, piece by piece.

    Args:
        eos: tokens that end the text; None: those of the mlc-chat-config.json beside the tokenizer.
        stats: filled in with the reason and the times when the stream is exhausted.

    Raises:
        UserError: the prompt is empty or does not fit the context window, or a setting is out of its range.
    """
    sampling = Sampling(temperature, top_p, seed)
    tokenizer = load_tokenizer(tokenizer_path)
    ids = tokenizer.encode(prompt).ids
    if not ids:
        raise UserError("the prompt is empty: give at least one character")
    if max_tokens < 1:
        raise UserError(f"max_tokens: found {max_tokens}; allowed: 1 or more")
    if len(ids) >= engine.context:
        raise UserError(
            f"the prompt has {len(ids)} tokens and the context window {engine.context}, so nothing can follow it",
            "shorten the prompt, or build with a larger model.context_window_size",
        )
    stops = _end_tokens(tokenizer_path) if eos is None else set(eos)
    return _stream(engine, tokenizer, ids, max_tokens, sampling, stops, stats or GenerationStats())


def _stream(
    engine: Engine,
    tokenizer: Any,
    ids: list[int],
    max_tokens: int,
    sampling: Sampling,
    stops: set[int],
    stats: GenerationStats,
) -> Iterator[str]:  # fmt: skip
    from time import perf_counter

    random, streamer = np.random.default_rng(sampling.seed), Streamer(tokenizer)
    sequence = engine.add_sequence()
    try:
        started = perf_counter()
        logits = engine.prefill(sequence, ids)
        stats.prompt_tokens, stats.prefill_seconds = len(ids), perf_counter() - started
        started = perf_counter()
        while not stats.reason:
            token = sample(logits, sampling, random)
            if token in stops:
                stats.reason = "eos"
                break
            stats.tokens += 1
            if piece := streamer.add(token):
                yield piece
            stats.reason = stop_reason(stats.tokens, max_tokens, engine.length(sequence), engine.context)
            if not stats.reason:
                logits = engine.decode(sequence, token)
        stats.decode_seconds = perf_counter() - started
        if rest := streamer.finish():
            yield rest
    finally:
        engine.remove_sequence(sequence)


def stop_reason(tokens: int, max_tokens: int, length: int, context: int) -> str:
    """Why no further token follows; "" if one does."""
    if tokens >= max_tokens:
        return "max_tokens"
    return "context" if length >= context else ""
