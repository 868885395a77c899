"""A checkpoint's chat template (Jinja): where it is, and what it makes of conversations.

Templates are programs of strangers: they run in a sandbox, in a process of its own with limits (jinja_process.py).
"""

from __future__ import annotations

import codecs
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_build.core.errors import UserError
from llm_build.core.fields import require
from llm_build.core.small_file import read_small
from llm_build.formats import jinja_process
from llm_build.formats.tokenizer import TokenizerFiles, named_tokens

FILE = "chat_template.jinja"
DATE = "2024-07-26"  # of templates that write the day: an artifact must not depend on when it is built. Llama 3.2's own
_MOST_BYTES = 4 << 20  # the longest published ones take 30 kB
WALL_SECONDS = 60  # of a busy machine; the limit that counts is of processor time
Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content"}


class CannotRender(Exception):
    """The template refuses a conversation, or fails; the message says how."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """``answer``: up to where the assistant begins."""

    messages: Sequence[Message]
    answer: bool = True


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template with its special tokens, by name."""

    source: str
    tokens: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Rendered:
    """``texts``: an entry is a CannotRender where the template refuses that conversation. ``parts``: contents were
    given as lists of parts, which is what the template wants."""

    texts: list[str | CannotRender]
    parts: bool


def render_all(template: Template, conversations: Sequence[Conversation]) -> Rendered:
    """The prompts, in one process.

    Raises:
        CannotRender: it takes more time or memory than a template may.
    """
    request = {
        "source": template.source,
        "tokens": dict(template.tokens),
        "date": DATE,
        "conversations": [{"messages": list(each.messages), "answer": each.answer} for each in conversations],
    }
    command = [sys.executable, "-P", jinja_process.__file__]
    try:
        done = subprocess.run(
            command, input=json.dumps(request), capture_output=True, text=True, timeout=WALL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotRender(f"the template takes more than {WALL_SECONDS} s") from None
    if done.returncode < 0:
        raise CannotRender(f"the template takes more than {jinja_process.CPU_SECONDS:g} s of processor time")
    if done.returncode:
        last = "".join(done.stderr.strip().splitlines()[-1:])
        raise CannotRender(f"the template takes more than {jinja_process.MEMORY_BYTES >> 20} MB, or fails: {last}")
    answer = json.loads(done.stdout)
    texts = [each["text"] if "text" in each else CannotRender(each["error"]) for each in answer["answers"]]
    return Rendered(texts, answer["parts"])


def render(template: Template, messages: Sequence[Message], answer: bool = True) -> str:
    """One prompt. Raises CannotRender."""
    (text,) = render_all(template, [Conversation(messages, answer)]).texts
    if isinstance(text, CannotRender):
        raise text
    return text


def writes_date(template: Template) -> bool:
    """Whether it may write the day that it is; here that is DATE."""
    return jinja_process.DATE_NAME in template.source


def read_template(files: TokenizerFiles, jinja: Path | None) -> Template | None:
    """The checkpoint's own: chat_template.jinja (``jinja``), else what tokenizer_config.json has; None: it has none, or
    none of several is the default.

    Raises:
        UserError: chat_template has another type than it must have; the file cannot be read as text.
    """
    source = read_text(jinja) if jinja else named_templates(files).get("default")
    return Template(source, named_tokens(files)) if source else None


def named_templates(files: TokenizerFiles) -> dict[str, str]:
    """The templates of tokenizer_config.json by name; a single one is "default"."""
    source, where = files.config.get("chat_template"), "tokenizer_config.json: chat_template"
    if isinstance(source, Mapping):  # as transformers holds a list
        source = [{"name": name, "template": text} for name, text in source.items()]
    if isinstance(source, list):
        for number, entry in enumerate(source):
            right = isinstance(entry, Mapping) and all(isinstance(entry.get(key), str) for key in ("name", "template"))
            require(right, f"{where}[{number}]", entry, "an object with a name and a template")
        return {entry["name"]: entry["template"] for entry in source}
    require(source is None or isinstance(source, str), where, source, "a template, or a list of templates with names")
    return {"default": source} if source else {}


def read_text(path: Path) -> str:
    """A template's text: UTF-8, with or without a mark at its beginning, UTF-16 with one, else Latin-1."""
    try:
        data = read_small(path, _MOST_BYTES)
    except OSError as error:
        raise UserError(f"{FILE}: cannot be read: {error.strerror}", f"look at {path}") from error
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def messages_of(text: str, system: str = "") -> list[dict[str, Any]]:
    """A conversation of one question."""
    first = [{"role": "system", "content": system}] if system else []
    return [*first, {"role": "user", "content": text}]
