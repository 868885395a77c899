"""Every key of a recipe with its type, from the schema: for completion and for suggestions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, get_args, get_type_hints

from llm_build.config import schema
from llm_build.config.choices import SECTIONS
from llm_build.config.strict import ALLOWED, Range


@cache
def all_keys() -> Mapping[str, Any]:
    """Dotted key ("quant.calibration.tokens") -> its type, in the order of the schema."""
    return dict(pair for section in SECTIONS for pair in _keys_of(getattr(schema, section.capitalize()), section))


def _keys_of(cls: type, path: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(cls)
    for field in fields(cls):
        hint, key = hints[field.name], f"{path}.{field.name}"
        if isinstance(hint, type) and is_dataclass(hint):
            yield from _keys_of(hint, key)
        elif key != "model.architecture":  # the parser's own place for the keys of a family
            yield key, hint


def allowed_words(key: str) -> tuple[str, ...]:
    """The words that a key may be set to, where the schema says them; null and numbers are not among them."""
    rule = ALLOWED.get(key)
    if isinstance(rule, Range):
        return rule.words
    if rule is not None:
        return tuple(filter(None, rule))
    hint = all_keys().get(key)
    return ("true", "false") if bool in (hint, *get_args(hint)) else ()
