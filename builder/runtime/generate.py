"""Text from a built artifact: tokenize, prefill, sample, decode, detokenize as it comes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_build.core.errors import UserError
from llm_build.core.units import count_of
from llm_build.formats import tokenizer as tokenizer_file
from llm_build.formats.chat_template import messages_of
from llm_build.runtime.chat import chat_config_of, chat_ids
from llm_build.runtime.engine import Engine, Floats
from llm_build.runtime.streaming import Streamer


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


def load_tokenizer(path: Path) -> Any:
    """A tokenizers.Tokenizer from tokenizer.json."""
    if not path.is_file():
        raise UserError(f"{path} does not exist: this model has no tokenizer.json, so no text can be made with it")
    return tokenizer_file.load(path)


def eos_tokens(config: Mapping[str, Any]) -> set[int]:
    """The end-of-text ids of an mlc-chat-config.json (or a config.json): none, one, or several."""
    ids = config.get("eos_token_id")
    return {ids} if isinstance(ids, int) else set(ids or ())


def _end_tokens(config: Mapping[str, Any]) -> set[int]:
    """Where a text or an answer ends, as an mlc-chat-config.json says."""
    return eos_tokens(config) | set(config["conv_template"]["stop_token_ids"])


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
    chat: bool = False,
) -> Iterator[str]:
    """Stream the continuation of ``prompt``, or the answer to it, piece by piece.

    Args:
        chat: the prompt is a question, written as the chat template beside the tokenizer has it, where there is one.
        eos: tokens that end the text; None: those of the mlc-chat-config.json beside the tokenizer.
        stats: filled in with the reason and the times when the stream is exhausted.

    Raises:
        UserError: the prompt is empty or does not fit the context window, or a setting is out of its range.
    """
    sampling = Sampling(temperature, top_p, seed)
    tokenizer = load_tokenizer(tokenizer_path)
    folder = tokenizer_path.parent
    config = chat_config_of(folder)
    ids = chat_ids(folder, tokenizer, messages_of(prompt)) if chat and prompt else None
    if ids is None:
        ids = tokenizer_file.encode(tokenizer, prompt)
    if not ids:
        raise UserError("the prompt is empty: give at least one character")
    if max_tokens < 1:
        raise UserError(f"max_tokens: found {max_tokens}; allowed: 1 or more")
    if len(ids) >= engine.context:
        raise UserError(
            f"the prompt has {count_of(len(ids), 'token')} and the context window {engine.context}, so nothing can "
            "follow it",
            "shorten the prompt, or build with a larger model.context_window_size",
        )
    stops = _end_tokens(config) if eos is None else set(eos)
    words = config.get("active_vocab_size", engine.vocab_size)
    return _stream(engine, tokenizer, ids, max_tokens, sampling, stops, stats or GenerationStats(), words)


def _stream(
    engine: Engine,
    tokenizer: Any,
    ids: list[int],
    max_tokens: int,
    sampling: Sampling,
    stops: set[int],
    stats: GenerationStats,
    words: int,
) -> Iterator[str]:  # fmt: skip
    """``words``: rows of the vocabulary that are tokens; those after them pad it and are never sampled."""
    from time import perf_counter

    random, streamer = np.random.default_rng(sampling.seed), Streamer(tokenizer)
    sequence = engine.add_sequence()
    try:
        started = perf_counter()
        logits = engine.prefill(sequence, ids)
        stats.prompt_tokens, stats.prefill_seconds = len(ids), perf_counter() - started
        started = perf_counter()
        while not stats.reason:
            token = sample(logits[:words], sampling, random)
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
