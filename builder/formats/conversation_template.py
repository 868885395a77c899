"""A checkpoint's chat template (Jinja) as the conversation template that MLC's runtimes and WebLLM read.

Theirs is a program, ours a handful of strings; so the strings are found by rendering probes, and then both are rendered
over the same conversations and compared. What cannot be said in the format is named, never guessed. The reading side is
WebLLM 0.2.86 (``getPromptArrayInternal``) and MLC's ``Conversation.as_prompt``: the system block, then role +
role_content_sep + text + separator for each message, and for the answer to come role + role_empty_sep.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from llm_build.formats.chat_template import CannotRender, Conversation, Message, Template, render_all

_HOLE = "{system_message}"
_SYSTEM, _ASKED, _SAID, _ASKED_2 = "xqSystemText", "xqFirstQuestion", "xqFirstAnswer", "xqSecondQuestion"
_MOST_CUTS = 64  # ways to cut what stands before a question, longest first; published ones need the first few
_MOST_TOKENS = 4  # that every prompt begins with
EMPTY_BLOCK = "MLC (not WebLLM) writes an empty system block where there is no system message"
_PART_OF_A_WORD = re.compile(r"[\w<\[({|#@]+\Z")
LEFT_OUT = "the template leaves a system message out"


class CannotExpress(Exception):
    """The template does something that the format has no words for; the message says what."""


@dataclass(frozen=True, slots=True)
class Translation:
    """``conv``: fields of conv_template; ``begins``: the text of the tokens that every prompt begins with ("" if none);
    ``notes``: what the card says of it; ``differs``: names of the conversations that come out otherwise than the
    checkpoint's own template has them."""

    conv: Mapping[str, Any]
    begins: str
    notes: tuple[str, ...]
    differs: tuple[str, ...] = ()


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


def translate(template: Template, special: Collection[str] = ()) -> Translation:
    """Find the strings, then compare: of several ways to cut, the first that differs nowhere, else the one that differs
    least.

    Args:
        special: the tokenizer's special tokens. A prompt may begin with several ("[gMASK]<sop>"), and where nothing
            stands after an answer, the token that begins a question ends it.

    Raises:
        CannotExpress: with the reason.
    """
    probes = {**_PROBES, **{name: Conversation(messages) for name, messages in CONVERSATIONS.items()}}
    try:
        texts = dict(zip(probes, render_all(template, list(probes.values())).texts, strict=True))
    except CannotRender as error:
        raise CannotExpress(str(error)) from error
    bos = template.tokens.get("bos_token", "")
    best, reasons = None, []
    for turns in _turn_candidates(texts, bos):
        for begins in _beginnings(texts, bos, special):
            try:
                found = _translation(texts, turns, begins)
            except CannotExpress as error:
                reasons.append(error)
                continue
            if not found.differs:
                return _with_stop(found, special)
            if best is None or len(found.differs) < len(best.differs):
                best = found
    if best is None:
        raise reasons[0]
    return _with_stop(best, special)


def _with_stop(found: Translation, special: Collection[str]) -> Translation:
    """An answer after which nothing stands ends where the model begins the next question (GLM)."""
    first = split_tokens(found.conv["roles"]["user"], special)[:1]
    if found.conv["stop_str"] or not set(first) & set(special):
        return found
    return replace(found, conv={**found.conv, "stop_str": first})


def _beginnings(texts: Mapping[str, str | CannotRender], bos: str, special: Collection[str]) -> list[str]:
    """Tokens that every prompt may begin with: the BOS, none, or some that all prompts share."""
    whole = _shared_start(*[text for text in texts.values() if isinstance(text, str)])
    tokens = sorted({*special, bos} - {""}, key=len, reverse=True)
    runs = [""]
    while len(runs) <= _MOST_TOKENS and (
        following := next((token for token in tokens if whole.startswith(token, len(runs[-1]))), "")
    ):
        runs.append(runs[-1] + following)
    return list(dict.fromkeys([*([bos] if whole.startswith(bos) else []), "", *runs[::-1]]))


def split_tokens(text: str, added: Collection[str]) -> list[str]:
    """A text that is a run of tokens as these tokens; whatever is none of them stays one piece."""
    tokens = sorted(filter(None, added), key=len, reverse=True)
    pieces = []
    while text:
        piece = next((token for token in tokens if text.startswith(token)), text)
        pieces.append(piece)
        text = text[len(piece) :]
    return pieces


def _translation(texts: Mapping[str, str | CannotRender], turns: _Turns, begins: str) -> Translation:
    head = _split(_rendered(texts, "asked"), _ASKED)[0].removeprefix(begins)
    conv = {**_roles(turns), **_system_part(texts, turns.user, head, begins)}
    return Translation(conv, begins, *_differences(texts, conv, begins))


def _shared_start(*texts: str) -> str:
    return commonprefix(texts)  # noqa: RUF071  (characters are what is meant)


def _rendered(texts: Mapping[str, str | CannotRender], name: str) -> str:
    text = texts[name]
    if isinstance(text, CannotRender):
        raise CannotExpress(str(text))
    return text


def _turn_candidates(texts: Mapping[str, str | CannotRender], begins: str) -> Iterator[_Turns]:
    """Ways to cut what stands between the texts; more than one may serve, and translate takes the first.

    An answer ends where a render without one to come ends, except where that appends something of its own (Phi's
    template the end of the text, some the next answer's role): then a question begins as the first one does, or with
    the end of what stands before the first one, which may have a system message of its own before that."""
    head, tail = _split(_rendered(texts, "asked"), _ASKED)
    first, rest = _split(_rendered(texts, "asked again"), _ASKED)
    between, rest = _split(rest, _SAID)
    again, last = _split(rest, _ASKED_2)
    if (first, last) != (head, tail):
        raise CannotExpress("the first or the last turn is written in another way than the others")
    ends = [again.removesuffix(start) for start in (head, head.removeprefix(begins)) if start and again.endswith(start)]
    shared = _shared_start(head[::-1], again[::-1])[::-1]
    close = _PART_OF_A_WORD.sub("", _shared_start(again, tail))
    ends = [*_tail(texts, "answered", _SAID, again.startswith), *ends]
    ends += [close] if close and shared.endswith(again[len(close) :]) else []
    ends += [again[: len(again) - length] for length in range(len(shared), max(0, len(shared) - _MOST_CUTS), -1)]
    asked = _tail(texts, "asked only", _ASKED, lambda end: tail.startswith(end) and between.startswith(end))
    if not ends:
        raise CannotExpress("an answer ends in another way when a question follows it")
    for end in dict.fromkeys(ends):
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
    stem = _shared_start(turns.assistant, turns.answer)
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


def _system_part(texts: Mapping[str, str | CannotRender], role: str, head: str, begins: str) -> dict[str, Any]:
    """The system template and its default text. ``head`` is what stands before the first question without a system
    message, ``role`` before others."""
    try:
        before, rest = _split(_rendered(texts, "system"), _SYSTEM)
        before, after = before.removeprefix(begins), _split(rest, _ASKED)[0]
    except CannotExpress:
        return _without_system(texts, role, head, begins)
    with_role = after.endswith(role)
    after = after.removesuffix(role) if with_role else after
    if with_role and not head.endswith(role):
        raise CannotExpress(_FIRST_DIFFERS)
    block = head.removesuffix(role) if with_role or head == role else head
    is_default = len(block) >= len(before + after) and block.startswith(before) and block.endswith(after)
    if block and not is_default:
        raise CannotExpress("the default system message is written in another way than a given one")
    return {
        "system_template": f"{before}{_HOLE}{after}",
        "system_message": block[len(before) : len(block) - len(after)] if block else "",
        "add_role_after_system_message": with_role,
        **({} if block else {"render_empty_system_message": False}),
    }


_FIRST_DIFFERS = "the first question is written in another way than the others"


def _without_system(texts: Mapping[str, str | CannotRender], role: str, head: str, begins: str) -> dict[str, Any]:
    """A fixed beginning: a system message is refused, left out, or written in a way of its own."""
    if not head.endswith(role):
        raise CannotExpress(_FIRST_DIFFERS)
    left_out = texts["system"] == texts["asked"]
    return {
        "system_template": head.removesuffix(role) + ("" if left_out else _HOLE),
        "system_message": "",
        "add_role_after_system_message": True,
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


def _differences(
    texts: Mapping[str, str | CannotRender], conv: Mapping[str, Any], begins: str
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Notes, and the names of the conversations that differ between the template and what the runtimes write.

    Raises CannotExpress when even one without a system message does, in WebLLM.
    """
    notes: dict[str, None] = {}
    differs = []
    if _HOLE not in conv["system_template"]:
        notes[LEFT_OUT] = None
    for name, messages in CONVERSATIONS.items():
        text = texts[name]
        if isinstance(text, CannotRender):
            notes[f"{name}: {text}"] = None
            continue
        if begins + render(conv, messages) != text:
            if messages[0]["role"] != "system":
                raise CannotExpress(f"{name}: the strings do not add up to what the template writes")
            notes[f"{name}: written in another way than the checkpoint's template has it"] = None
            differs.append(name)
        elif begins + render(conv, messages, empty_system=True) != text:
            notes[EMPTY_BLOCK] = None
    return tuple(notes), tuple(differs)
