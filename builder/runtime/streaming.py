"""Tokens to text, piece by piece: the pieces together are what the whole decodes to."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer makes of bytes that are not yet a character
_CONTEXT_TOKENS = 6  # tokens decoded before the new ones, so that spaces and accents come out as in the whole text
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(slots=True)
class Streamer:
    """Tokens -> text, never half a character.

    Byte-fallback decoders (Llama 2, Gemma) take a run of byte tokens as one: all of it is text, or none. So such a run
    is held back until a token of another kind ends it.
    """

    tokenizer: Any
    tokens: list[int] = field(default_factory=list)
    start: int = 0  # of the window that is decoded again for each token
    emitted: str = ""  # the part of the window's text that was returned
    _special: Collection[int] = field(init=False)
    _falls_back: bool = field(init=False)

    def __post_init__(self) -> None:
        added = self.tokenizer.get_added_tokens_decoder()
        self._special = {id_ for id_, token in added.items() if token.special}
        self._falls_back = _falls_back_to_bytes(self.tokenizer.decoder)

    def add(self, token: int) -> str:
        """The text that this token completes; often a word, sometimes nothing."""
        self.tokens.append(token)
        if self._in_run(token):
            return ""
        text = self._text()
        if text.endswith(_UNFINISHED):
            return ""
        piece = text[len(self.emitted) :]
        self._move_window()
        return piece

    def finish(self) -> str:
        """What is left at the end: a character that was never completed shows as a replacement mark."""
        return self._text()[len(self.emitted) :]

    def _text(self) -> str:
        return str(self.tokenizer.decode(self.tokens[self.start :], skip_special_tokens=True))

    def _in_run(self, token: int) -> bool:
        """Whether a run of byte tokens may go on: special tokens are no part of the text, so they end none."""
        if not self._falls_back:
            return False
        last = next((each for each in reversed(self.tokens) if self._shows(each)), token)
        return _BYTE.fullmatch(self.tokenizer.id_to_token(last) or "") is not None

    def _shows(self, token: int) -> bool:
        return token not in self._special and bool(self.tokenizer.id_to_token(token))

    def _move_window(self) -> None:
        """The window begins some tokens back that show: decoders treat the first one otherwise than the rest."""
        start, context = len(self.tokens), 0
        while start > self.start and context < _CONTEXT_TOKENS:
            start -= 1
            context += self._shows(self.tokens[start])
        if context == _CONTEXT_TOKENS:
            self.start = start
        self.emitted = self._text()


def _falls_back_to_bytes(decoder: Any) -> bool:
    """Whether a tokenizers decoder, or a member of its sequence, is ByteFallback."""
    if decoder is None:
        return False
    state = json.loads(decoder.__getstate__())
    return any(part.get("type") == "ByteFallback" for part in (state, *state.get("decoders", ())))
