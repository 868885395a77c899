"""The prompt of a chat model: what its template makes of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_build.core.errors import UserError
from llm_build.core.fields import TEXT, check_fields
from llm_build.formats import chat_template
from llm_build.formats.artifact_config import NAME, read_chat_config
from llm_build.formats.chat_template import CannotRender, Message, Template
from llm_build.formats.checkpoint import read_json
from llm_build.formats.conversation_template import render
from llm_build.formats.tokenizer import encode

_PLAIN = "plain"


def chat_ids(folder: Path, tokenizer: Any, messages: Sequence[Message]) -> list[int] | None:
    """Token ids of a conversation, up to where the answer begins; None: the artifact has no chat template.

    The checkpoint's own template is rendered where the artifact has it, else MLC's form of it.

    Raises:
        UserError: the template refuses the conversation.
    """
    own = _read_own(folder)
    if own is not None:
        try:
            text = chat_template.render(own, messages)
        except CannotRender as error:
            raise UserError(
                f"{folder / chat_template.FILE}: {error}", "build generate --plain continues a text"
            ) from error
        return encode(tokenizer, text, special=False)
    conv = chat_config_of(folder)["conv_template"]
    if conv["name"] == _PLAIN:
        return None
    text = render(conv, messages)
    return [*conv["system_prefix_token_ids"], *encode(tokenizer, text, special=False)]


def has_chat(folder: Path) -> bool:
    """Whether a conversation can be written for this artifact."""
    return _read_own(folder) is not None or chat_config_of(folder)["conv_template"]["name"] != _PLAIN


def _read_own(folder: Path) -> Template | None:
    """The checkpoint's own template, as package writes it beside its tokens."""
    path, names = folder / chat_template.FILE, folder / "special_tokens_map.json"
    if not path.is_file():
        return None
    tokens = read_json(names, str(names)) if names.is_file() else {}
    check_fields(f"{names}: ", tokens, dict.fromkeys(tokens, TEXT))
    return Template(chat_template.read_text(path), tokens)


def chat_config_of(folder: Path) -> dict[str, Any]:
    """mlc-chat-config.json, checked; without any text where there is none."""
    return read_chat_config(folder / NAME)
