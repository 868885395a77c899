"""A checkpoint's chat template (Jinja) as the conversation template that MLC's runtimes and WebLLM read.

Theirs is a program, ours a handful of strings; so the strings are found by rendering probes, and then both are rendered
over the same conversations and compared. What cannot be said in the format is named, never guessed.

Jinja's setting is transformers' (https://huggingface.co/docs/transformers/chat_templating): a sandbox, blocks trimmed,
``raise_exception`` and ``tojson``. ``strftime_now`` is left out: a template that looks for it takes its fixed date, and
an artifact must not depend on the day. The reading side is WebLLM 0.2.86 (``getPromptArrayInternal``) and MLC's
``Conversation.as_prompt``: the system block, then role + role_content_sep + text + separator for each message, and for
the answer to come role + role_empty_sep.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

Message = Mapping[str, str]  # {"role": "system" | "user" | "assistant", "content"}
_HOLE = "{system_message}"
_SYSTEM, _ASKED, _SAID, _ASKED_2 = "xqSystemText", "xqFirstQuestion", "xqFirstAnswer", "xqSecondQuestion"


class CannotExpress(Exception):
    """The template does something that the format has no words for; the message says what."""


@dataclass(frozen=True, slots=True)
class Translation:
    """``conv``: fields of conv_template; ``begins``: the token text that every prompt begins with ("" if none);
    ``notes``: conversations that come out otherwise than the checkpoint's own template has them."""

    conv: Mapping[str, Any]
    begins: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template with its special tokens."""

    source: str
    tokens: Mapping[str, str]

    def render(self, messages: Sequence[Message], answer: bool) -> str:
        """The prompt; with ``answer`` up to where the assistant begins. Raises CannotExpress when the template does."""
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise CannotExpress(f"the template refuses: {message}")

        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
        environment.globals["raise_exception"] = refuse
        try:
            template = environment.from_string(self.source)
            text: str = template.render(messages=list(messages), add_generation_prompt=answer, **self.tokens)
        except jinja2.TemplateError as error:
            raise CannotExpress(f"the template cannot be rendered: {error}") from error
        return text


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


def translate(template: Template) -> Translation:
    """Find the strings, then compare. Raises CannotExpress with the reason."""
    head, tail = split(template.render([user(_ASKED)], True), _ASKED)
    parts = _turns(template, head, tail)
    begins = template.tokens.get("bos_token", "")
    block = head.removesuffix(parts["user"])
    if not begins or not block.startswith(begins):
        begins = ""
    conv = {**roles(parts), **_system_part(template, parts["user"], block.removeprefix(begins), begins)}
    return Translation(conv, begins, tuple(differences(template, conv, begins)))


def _turns(template: Template, head: str, tail: str) -> dict[str, str]:
    """What stands before and after a user's and an assistant's text, and before an answer to come."""
    after_user = split(template.render([user(_ASKED)], False), _ASKED)[1]
    whole = template.render([user(_ASKED), assistant(_SAID), user(_ASKED_2)], True)
    first, rest = split(whole, _ASKED)
    between, rest = split(rest, _SAID)
    again, last = split(rest, _ASKED_2)
    after_assistant = split(template.render([user(_ASKED), assistant(_SAID)], False), _SAID)[1]
    if (first, last) != (head, tail):
        raise CannotExpress("the first or the last turn is written in another way than the others")
    return {
        "after_user": after_user,
        "after_assistant": after_assistant,
        "answer": drop(tail, after_user),
        "assistant": drop(between, after_user),
        "user": drop(again, after_assistant),
    }


def split(text: str, mark: str) -> tuple[str, str]:
    """What is before and after a probe; the template must write it once and as it is."""
    if text.count(mark) != 1:
        raise CannotExpress("the template leaves out, repeats or changes what was said")
    before, _, after = text.partition(mark)
    return before, after


def drop(text: str, prefix: str) -> str:
    if not text.startswith(prefix):
        raise CannotExpress("a message ends in another way when another one follows it")
    return text.removeprefix(prefix)


def roles(parts: Mapping[str, str]) -> dict[str, Any]:
    """Role strings and separators. The role of an answer to come and of one that is there share their beginning."""
    stem = commonprefix([parts["assistant"], parts["answer"]])  # noqa: RUF071  (characters are what is meant)
    content, empty = parts["assistant"].removeprefix(stem), parts["answer"].removeprefix(stem)
    if not parts["user"].endswith(content):
        raise CannotExpress("user and assistant do not share what stands between a role and its text")
    same = parts["after_user"] == parts["after_assistant"]
    stop = parts["after_assistant"].strip()
    return {
        "roles": {"user": parts["user"].removesuffix(content), "assistant": stem},
        "role_content_sep": content,
        "role_empty_sep": empty,
        "seps": [parts["after_user"]] if same else [parts["after_user"], parts["after_assistant"]],
        "stop_str": [stop] if stop else [],
    }


def _system_part(template: Template, role: str, block: str, begins: str) -> dict[str, Any]:
    """The system template and its default text. ``block`` is what stands before the first role without a system
    message."""
    try:
        before, rest = split(template.render([system(_SYSTEM), user(_ASKED)], True), _SYSTEM)
    except CannotExpress:
        if block:
            raise CannotExpress("a fixed beginning, and no system message to put in its place") from None
        return {"system_template": _HOLE, "system_message": "", "add_role_after_system_message": True}
    before, after = before.removeprefix(begins), split(rest, _ASKED)[0]
    with_role = after.endswith(role)
    after = after.removesuffix(role) if with_role else after
    if block and not (with_role and block.startswith(before) and block.endswith(after)):
        raise CannotExpress("the default system message is written in another way than a given one")
    return {
        "system_template": f"{before}{_HOLE}{after}",
        "system_message": block.removeprefix(before).removesuffix(after) if block else "",
        "add_role_after_system_message": with_role,
        **({} if block else {"render_empty_system_message": False}),
    }


def render(conv: Mapping[str, Any], messages: Sequence[Message], empty_system: bool) -> str:
    """What a runtime makes of ``conv``, with the answer to come. ``empty_system``: MLC writes the system block even
    around no text; WebLLM leaves it out when render_empty_system_message is false."""
    given = [m["content"] for m in messages if m["role"] == "system"]
    text = given[0] if given else conv["system_message"]
    block = conv["system_template"].replace(_HOLE, text) if text or empty_system else ""
    out = [block]
    for number, message in enumerate(m for m in messages if m["role"] != "system"):
        bare = number == 0 and block and not conv["add_role_after_system_message"]
        role = "" if bare else conv["roles"][message["role"]] + conv["role_content_sep"]
        seps = conv["seps"]
        out.append(role + message["content"] + seps[(message["role"] == "assistant") % len(seps)])
    return "".join([*out, conv["roles"]["assistant"], conv["role_empty_sep"]])


CONVERSATIONS: dict[str, list[Message]] = {
    "one question": [user("Why?")],
    "several turns": [user("Why?"), assistant("Because."), user("And then?"), assistant("Nothing."), user("Oh?")],
    "a system message": [system("Be short."), user("Why?")],
    "a system message and several turns": [system("Be short."), user("Why?"), assistant("So."), user("Oh?")],
}


def differences(template: Template, conv: Mapping[str, Any], begins: str) -> list[str]:
    """Which conversations differ between the template and what the runtimes write.

    Raises CannotExpress when even one without a system message does, in WebLLM.
    """
    notes = []
    for name, messages in CONVERSATIONS.items():
        try:
            theirs = template.render(messages, True).removeprefix(begins)
        except CannotExpress as error:
            notes.append(f"{name}: {error}")
            continue
        if render(conv, messages, empty_system=False) != theirs:
            if messages[0]["role"] != "system":
                raise CannotExpress(f"{name}: the strings do not add up to what the template writes")
            notes.append(f"{name}: written in another way than the checkpoint's template has it")
        elif render(conv, messages, empty_system=True) != theirs:
            notes.append(f"{name}: MLC (not WebLLM) writes an empty system block")
    return notes
