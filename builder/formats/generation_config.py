"""What a checkpoint says of sampling and of where a text ends: generation_config.json, then config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_build.core.fields import is_number, require

SAMPLING = {  # MLC's defaults; a checkpoint's generation_config.json may change them. {name: (default, least, most)}
    "temperature": (1.0, 0.0, 100.0),
    "presence_penalty": (0.0, -2.0, 2.0),
    "frequency_penalty": (0.0, -2.0, 2.0),
    "repetition_penalty": (1.0, 0.0, 100.0),
    "top_p": (1.0, 0.0, 1.0),
}
_FILES = ("generation_config.json", "config.json")  # the first that has a key decides
_NO_ID = -1  # how some checkpoints of 2023 write that there is no such token


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """``eos``: every token that ends a text. ``bos``, ``pad``: None where the checkpoint gives none."""

    sampling: Mapping[str, float]
    eos: tuple[int, ...]
    bos: int | None
    pad: int | None


def read_generation_config(generation: Mapping[str, Any], config: Mapping[str, Any]) -> GenerationConfig:
    """From generation_config.json and config.json, {} where there is none. transformers ends a text at the ids of the
    first file that gives any, MLC at those of its one file: here at those of both, which only ever ends it earlier.

    Raises:
        UserError: a field has another type or lies out of its range.
    """
    sampling = {name: _number(generation.get(name), name, *limits) for name, limits in SAMPLING.items()}
    tables = tuple(zip(_FILES, (generation, config), strict=True))
    eos = [id_ for file, table in tables for id_ in _ids(table.get("eos_token_id"), f"{file}: eos_token_id")]
    bos, pad = (
        [_id(table.get(key), f"{file}: {key}") for file, table in tables] for key in ("bos_token_id", "pad_token_id")
    )
    return GenerationConfig(sampling, tuple(dict.fromkeys(eos)), _first(bos), _first(pad))


def beyond_vocabulary(read: GenerationConfig, config: Mapping[str, Any]) -> str:
    """A note for an end that the model can never write, as its vocabulary has no such row; "" if there is none.
    transformers takes it, and the text ends by its length."""
    rows = config.get("vocab_size")
    beyond = [id_ for id_ in read.eos if isinstance(rows, int) and id_ >= rows]
    return f"eos_token_id {', '.join(map(str, beyond))}: vocab_size is {rows}, so no text ends there" if beyond else ""


def _number(value: Any, name: str, default: float, least: float, most: float) -> float:
    if value is None:
        return default
    right = is_number(value) and least <= value <= most
    require(right, f"generation_config.json: {name}", value, f"a number from {least:g} to {most:g}")
    return float(value)


def _ids(value: Any, where: str) -> list[int]:
    """None, an id or a list of ids."""
    listed = value if isinstance(value, list) else [value]
    for id_ in listed:
        right = (id_ is None and not isinstance(value, list)) or _is_id(id_)
        require(right, where, value, "a token id, or a list of token ids")
    return [id_ for id_ in listed if id_ not in (None, _NO_ID)]


def _id(value: Any, where: str) -> int | None:
    """None, an id, or a list of one: the form that a save of several ids leaves."""
    ids = _ids(value, where)
    require(len(ids) < 2, where, value, "one token id")
    return ids[0] if ids else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and _NO_ID <= value < 1 << 31


def _first(values: list[int | None]) -> int | None:
    return next((value for value in values if value is not None), None)
