"""A checkpoint's chat template (Jinja) as the conversation template that MLC's runtimes and WebLLM read.

Theirs is a program, ours a handful of strings; so the strings are found by rendering probes, and then both are rendered
over the same conversations and compared. What cannot be said in the format is named, never guessed. The reading side is
WebLLM 0.2.86 (``getPromptArrayInternal``) and MLC's ``Conversation.as_prompt``: the system block, then role +
role_content_sep + text + separator for each message, and for the answer to come role + role_empty_sep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from llm_build.formats.chat_template import CannotRender, Conversation, Message, Template, render_all

_HOLE = "{system_message}"
_SYSTEM, _ASKED, _SAID, _ASKED_2 = "xqSystemText", "xqFirstQuestion", "xqFirstAnswer", "xqSecondQuestion"
EMPTY_BLOCK = "MLC (not WebLLM) writes an empty system block where there is no system message"


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
class _Turns:
    """What stands around the texts of a conversation."""

    user: str  # before a question that follows an answer
    assistant: str  # before an answer that is there
    answer: str  # before one to come
    after_user: str
    after_assistant: str


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


def system(text: str) -> Message:
    return {"role": "system", "content": text}


_QUESTION, _SHORT = user("Why?"), system("Be short.")
_TWO = [_QUESTION, assistant("Because."), user("And then?")]
_THREE = [*_TWO, assistant("Nothing."), user("Oh?")]
CONVERSATIONS: dict[str, list[Message]] = {
    "one question": [_QUESTION],
    "two turns": _TWO,
    "three turns": _THREE,
    "a system message": [_SHORT, _QUESTION],
    "a system message and two turns": [_SHORT, *_TWO],
    "a system message and three turns": [_SHORT, *_THREE],
}
_PROBES = {
    "asked": Conversation([user(_ASKED)]),
    "asked only": Conversation([user(_ASKED)], answer=False),
    "answered": Conversation([user(_ASKED), assistant(_SAID)], answer=False),
    "asked again": Conversation([user(_ASKED), assistant(_SAID), user(_ASKED_2)]),
    "system": Conversation([system(_SYSTEM), user(_ASKED)]),
}


def translate(template: Template) -> Translation:
    """Find the strings, then compare. Raises CannotExpress with the reason."""
    probes = {**_PROBES, **{name: Conversation(messages) for name, messages in CONVERSATIONS.items()}}
    try:
        texts = dict(zip(probes, render_all(template, list(probes.values())), strict=True))
    except CannotRender as error:
        raise CannotExpress(str(error)) from error
    begins = template.tokens.get("bos_token", "")
    reasons = []
    for turns in _turn_candidates(texts, begins):
        try:
            return _translation(texts, turns, begins)
        except CannotExpress as error:
            reasons.append(error)
    raise reasons[0]


def _translation(texts: Mapping[str, str | CannotRender], turns: _Turns, begins: str) -> Translation:
    head = _split(_rendered(texts, "asked"), _ASKED)[0]
    if not head.endswith(turns.user):
        raise CannotExpress("the first question is written in another way than the others")
    block = head.removesuffix(turns.user)
    if not begins or not block.startswith(begins):
        begins = ""
    conv = {**_roles(turns), **_system_part(texts, turns.user, block.removeprefix(begins), begins)}
    return Translation(conv, begins, tuple(_differences(texts, conv, begins)))


def _rendered(texts: Mapping[str, str | CannotRender], name: str) -> str:
    text = texts[name]
    if isinstance(text, CannotRender):
        raise CannotExpress(str(text))
    return text


def _turn_candidates(texts: Mapping[str, str | CannotRender], begins: str) -> Iterator[_Turns]:
    """Ways to cut what stands between the texts; more than one may serve, and translate takes the first.

    An answer ends where a render without one to come ends, except where that appends something of its own (Phi's
    template the end of the text, some the next answer's role): then a question begins as the first one does."""
    head, tail = _split(_rendered(texts, "asked"), _ASKED)
    first, rest = _split(_rendered(texts, "asked again"), _ASKED)
    between, rest = _split(rest, _SAID)
    again, last = _split(rest, _ASKED_2)
    if (first, last) != (head, tail):
        raise CannotExpress("the first or the last turn is written in another way than the others")
    ends = [again.removesuffix(start) for start in (head, head.removeprefix(begins)) if start and again.endswith(start)]
    ends = [*_tail(texts, "answered", _SAID, again.startswith), *ends]
    asked = _tail(texts, "asked only", _ASKED, lambda end: tail.startswith(end) and between.startswith(end))
    if not ends:
        raise CannotExpress("an answer ends in another way when a question follows it")
    for end in ends:
        alike = [end] if end and tail.startswith(end) and between.startswith(end) else []
        for after in (*alike, *asked, ""):
            yield _Turns(again.removeprefix(end), between.removeprefix(after), tail.removeprefix(after), after, end)


def _tail(
    texts: Mapping[str, str | CannotRender], name: str, mark: str, serves: Callable[[str], bool]
) -> list[str]:  # fmt: skip
    """What a render without an answer to come has after ``mark``, where it is what stands there in others too."""
    text = texts[name]
    if isinstance(text, CannotRender) or text.count(mark) != 1:
        return []
    end = _split(text, mark)[1]
    return [end] if serves(end) else []


def _split(text: str, mark: str) -> tuple[str, str]:
    """What is before and after a probe; the template must write it once and as it is."""
    if text.count(mark) != 1:
        raise CannotExpress("the template leaves out, repeats or changes what was said")
    before, _, after = text.partition(mark)
    return before, after


def _roles(turns: _Turns) -> dict[str, Any]:
    """Role strings and separators. The role of an answer to come and of one that is there share their beginning; where
    a question lacks what follows it there, that goes into the answer's own template."""
    stem = commonprefix([turns.assistant, turns.answer])  # noqa: RUF071  (characters are what is meant)
    content, empty = turns.assistant.removeprefix(stem), turns.answer.removeprefix(stem)
    templates = {}
    if not turns.user.endswith(content):
        templates = {"role_templates": {**ROLE_TEMPLATES, "assistant": content + ROLE_TEMPLATES["assistant"]}}
        content = ""
    same = turns.after_user == turns.after_assistant
    stop = turns.after_assistant.strip()
    return {
        "roles": {"user": turns.user.removesuffix(content), "assistant": stem},
        "role_content_sep": content,
        "role_empty_sep": empty,
        "seps": [turns.after_user] if same else [turns.after_user, turns.after_assistant],
        "stop_str": [stop] if stop else [],
        **templates,
    }


ROLE_TEMPLATES = {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"}


def _system_part(texts: Mapping[str, str | CannotRender], role: str, block: str, begins: str) -> dict[str, Any]:
    """The system template and its default text. ``block`` is what stands before the first role without a system
    message."""
    try:
        before, rest = _split(_rendered(texts, "system"), _SYSTEM)
        before, after = before.removeprefix(begins), _split(rest, _ASKED)[0]
    except CannotExpress:  # refused, left out, or merged into the question: a fixed beginning is all there is
        return {"system_template": _HOLE, "system_message": block, "add_role_after_system_message": True}
    with_role = after.endswith(role)
    after = after.removesuffix(role) if with_role else after
    is_default = with_role and block.startswith(before) and block.removeprefix(before).endswith(after)
    if block and not is_default:
        raise CannotExpress("the default system message is written in another way than a given one")
    return {
        "system_template": f"{before}{_HOLE}{after}",
        "system_message": block.removeprefix(before).removesuffix(after) if block else "",
        "add_role_after_system_message": with_role,
        **({} if block else {"render_empty_system_message": False}),
    }


def render(conv: Mapping[str, Any], messages: Sequence[Message], empty_system: bool = False) -> str:
    """What a runtime makes of ``conv``, with the answer to come. ``empty_system``: MLC writes the system block even
    around no text; WebLLM leaves it out when render_empty_system_message is false."""
    given = [m["content"] for m in messages if m["role"] == "system"]
    text = given[0] if given else conv["system_message"]
    leaves_out = conv.get("render_empty_system_message") is False and not empty_system
    block = "" if leaves_out and not text else conv["system_template"].replace(_HOLE, text)
    out = [block]
    templates = conv.get("role_templates", ROLE_TEMPLATES)
    for number, message in enumerate(m for m in messages if m["role"] != "system"):
        name, seps = message["role"], conv["seps"]
        bare = number == 0 and block and not conv["add_role_after_system_message"]
        role = "" if bare else conv["roles"][name] + conv["role_content_sep"]
        content = templates[name].replace(f"{{{name}_message}}", message["content"])
        out.append(role + content + seps[number % len(seps)])
    return "".join([*out, conv["roles"]["assistant"], conv["role_empty_sep"]])


def _differences(texts: Mapping[str, str | CannotRender], conv: Mapping[str, Any], begins: str) -> list[str]:
    """Which conversations differ between the template and what the runtimes write.

    Raises CannotExpress when even one without a system message does, in WebLLM.
    """
    notes: dict[str, None] = {}
    for name, messages in CONVERSATIONS.items():
        text = texts[name]
        if isinstance(text, CannotRender):
            notes[f"{name}: {text}"] = None
            continue
        theirs = text.removeprefix(begins)
        if render(conv, messages) != theirs:
            if messages[0]["role"] != "system":
                raise CannotExpress(f"{name}: the strings do not add up to what the template writes")
            notes[f"{name}: written in another way than the checkpoint's template has it"] = None
        elif render(conv, messages, empty_system=True) != theirs:
            notes[EMPTY_BLOCK] = None
    return list(notes)
