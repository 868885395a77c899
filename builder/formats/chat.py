"""How an artifact chats: the checkpoint's template in MLC's format, as it is, or, where it is of no use, not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm_build.formats.chat_template import (
    DATE,
    FILE,
    CannotRender,
    Conversation,
    Template,
    named_templates,
    read_template,
    render_all,
    writes_date,
)
from llm_build.formats.conversation_template import CONVERSATIONS, CannotExpress, Translation, translate
from llm_build.formats.tokenizer import TokenizerFiles, named_tokens

TOKENS_FILE = "special_tokens_map.json"
WAY_OUT = (
    f"put a {FILE} that works beside the checkpoint's config.json, take model.conv_template=chatml if the model knows "
    "ChatML, or model.conv_template=plain for a model that only continues texts"
)


@dataclass(frozen=True, slots=True)
class Chat:
    """``conversation``: MLC's conversation template: a name of CONV_TEMPLATES, or the checkpoint's own in MLC's format.
    ``template``: the checkpoint's own as it is, where it can be rendered. ``refused``: why it is of no use ("": it is).
    ``notes`` go into the card."""

    conversation: str | Translation
    template: Template | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    refused: str = ""


def chat_of(files: TokenizerFiles, jinja: Path | None) -> Chat:
    """What is made of the checkpoint's chat template; plain text where it has none.

    Args:
        jinja: its chat_template.jinja, which goes before what tokenizer_config.json has.

    Raises:
        UserError: a file is damaged, or a field has another type than it must have.
    """
    template = read_template(files, jinja)
    if template is None:
        names = {} if jinja else named_templates(files)
        if not names or "default" in names:
            return Chat("plain")
        return _refused(f"tokenizer_config.json has {', '.join(map(repr, names))} and none that is named 'default'")
    dated = [f"it writes the day: here that is always {DATE}"] * writes_date(template)
    special = [token["content"] for token in files.tokenizer.get("added_tokens") or [] if token.get("special")]
    try:
        translation = translate(template, special)
    except CannotExpress as error:
        refused, takes = _use_of(template)
        if refused:
            return _refused(refused)
        note = (
            f"MLC's own format cannot express it ({error}): `build generate` renders {FILE}; runtimes that read "
            "mlc-chat-config.json alone, WebLLM too, complete plain text"
        )
        return Chat("plain", template, (*dated, note, *takes), (f"chat template: {note}",))
    return Chat(translation, template, (*dated, *translation.notes))


def files_of(chat: Chat, files: TokenizerFiles) -> dict[str, str]:
    """What the artifact has of the checkpoint's own template, by file name: the template, and the tokens it writes."""
    if chat.template is None:
        return {}
    return {FILE: chat.template.source, TOKENS_FILE: json.dumps(named_tokens(files), indent=2) + "\n"}


def _refused(reason: str) -> Chat:
    warning = f"the checkpoint's chat template cannot be used: {reason}. The model completes plain text: {WAY_OUT}"
    return Chat("plain", warnings=(warning,), refused=reason)


def _use_of(template: Template) -> tuple[str, Sequence[str]]:
    """Why a template is of no use ("": it is of use), and which conversations it does not take."""
    try:
        texts = render_all(template, [Conversation(messages) for messages in CONVERSATIONS.values()]).texts
    except CannotRender as error:
        return str(error), ()
    failures = [text for text in texts if isinstance(text, CannotRender)]
    if len(failures) == len(texts):
        return str(failures[0]), ()
    pairs = list(zip(CONVERSATIONS.items(), texts, strict=True))
    written = [text for _, text in pairs if isinstance(text, str)]
    if len(set(written)) == 1:
        return "it writes the same text whatever is asked", ()
    return "", [f"{name}: {text}" for (name, _), text in pairs if isinstance(text, CannotRender)]
