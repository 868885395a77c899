"""The prompt of a chat model: what its template makes of a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_build.core.errors import UserError
from llm_build.core.fields import TEXT, check_fields
from llm_build.formats import chat_template
from llm_build.formats.artifact_config import NAME, REFUSED, read_chat_config
from llm_build.formats.chat import TOKENS_FILE, WAY_OUT
from llm_build.formats.chat_template import CannotRender, Message, Template
from llm_build.formats.checkpoint import read_json
from llm_build.formats.conversation_template import render
from llm_build.formats.tokenizer import encode

_PLAIN = "plain"
_PLAINLY = "build generate --plain continues a text"


def chat_ids(folder: Path, tokenizer: Any, messages: Sequence[Message]) -> list[int] | None:
    """Token ids of a conversation, up to where the answer begins; None: the artifact has no chat template.

    Raises:
        UserError: the template refuses the conversation, or is of no use for any.
    """
    written = chat_prompt(folder, messages)
    return None if written is None else [*written[0], *encode(tokenizer, written[1], special=False)]


def chat_prompt(folder: Path, messages: Sequence[Message]) -> tuple[list[int], str] | None:
    """The ids that a conversation begins with, and the text after them: the checkpoint's own template where the
    artifact has it, else MLC's form of it. None, and what is raised: as ``chat_ids``."""
    own = read_own(folder)
    if own is not None:
        try:
            return [], chat_template.render(own, messages)
        except CannotRender as error:
            raise UserError(f"{folder / chat_template.FILE}: {error}", _PLAINLY) from error
    config = chat_config_of(folder)
    if refused := config.get(REFUSED):
        raise UserError(f"the checkpoint's chat template cannot be used: {refused}", f"{_PLAINLY}; or {WAY_OUT}")
    conv = config["conv_template"]
    return None if conv["name"] == _PLAIN else (conv["system_prefix_token_ids"], render(conv, messages))


def has_chat(folder: Path) -> bool:
    """Whether this is an artifact of a chat model, one whose template is of no use included."""
    config = chat_config_of(folder)
    return read_own(folder) is not None or REFUSED in config or config["conv_template"]["name"] != _PLAIN


def read_own(folder: Path) -> Template | None:
    """The checkpoint's own template, as package writes it beside its tokens."""
    path, names = folder / chat_template.FILE, folder / TOKENS_FILE
    if not path.is_file():
        return None
    tokens = read_json(names, str(names)) if names.is_file() else {}
    check_fields(f"{names}: ", tokens, dict.fromkeys(tokens, TEXT))
    return Template(chat_template.read_text(path), tokens)


def chat_config_of(folder: Path) -> dict[str, Any]:
    """mlc-chat-config.json, checked; without any text where there is none."""
    return read_chat_config(folder / NAME)
