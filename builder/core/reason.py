"""Reasons in words: what differs between the key parts of now and of the last result at the same place."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from llm_build.core.step_io import Json

SHOWN = 3  # differences that a summary names
_VALUE_CHARS = 40
_SIZE = 2  # index of the size in a stat signature

Names = Mapping[str, str]


class Difference(NamedTuple):
    """``what`` differs (dotted path into the key parts), as it was and as it is; ``text`` says it in a few words."""

    what: str
    last: str
    now: str
    text: str


class KeyState(NamedTuple):
    """One of two states of a step: key parts, {port: {name: digest}} of its groups, {module file: digest} if known."""

    parts: Mapping[str, Json]
    groups: Mapping[str, Names]
    code: Names | None


def summarize_differences(differences: list[Difference]) -> str:
    texts = [difference.text for difference in differences]
    more = f" and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return ", ".join(texts[:SHOWN]) + more


def differences(
    last: KeyState, now: KeyState, labels: Mapping[str, tuple[str, str]], recipe_keys: Names
) -> list[Difference]:
    """Everything that differs. ``labels`` is {port: (output in words, template of a group's items)}; ``recipe_keys`` is
    {path below the parameters: how a user types it}."""
    old, new = last.parts, now.parts
    return [
        *_params("function", old["function"], new["function"]),
        *(_as_typed(each, recipe_keys) for each in _params("", old["params"], new["params"])),
        *_tools(old["tools"], new["tools"]),
        *_code(last, now),
        *_watch(old["watch"], new["watch"]),
        *_inputs(last, now, labels),
    ]


def _params(path: str, last: Json, now: Json) -> Iterator[Difference]:
    last, now = (list(value) if isinstance(value, tuple) else value for value in (last, now))  # a record has lists
    if isinstance(last, dict) and isinstance(now, dict):
        for key in sorted(last.keys() | now.keys()):
            below = f"{path}.{key}" if path else key
            if key not in last:
                yield Difference(below, "", _show(now[key]), f"{below} added ({_show(now[key])})")
            elif key not in now:
                yield Difference(below, _show(last[key]), "", f"{below} removed (was {_show(last[key])})")
            else:
                yield from _params(below, last[key], now[key])
    elif isinstance(last, list) and isinstance(now, list) and len(last) == len(now):
        for index, (old, new) in enumerate(zip(last, now, strict=True)):
            yield from _params(f"{path}.{index}", old, new)
    elif last != now or type(last) is not type(now):
        yield Difference(path, _show(last), _show(now), f"{path} {_show(last)} → {_show(now)}")


def _as_typed(difference: Difference, recipe_keys: Names) -> Difference:
    """With the key of the recipe that decides the parameter, the longest path first."""
    what, below = difference.what, ""
    path = what
    while path and path not in recipe_keys:
        path, dot, name = path.rpartition(".")
        below = f"{dot}{name}{below}"
    if not path:
        return difference
    key = recipe_keys[path] + below
    return difference._replace(what=key, text=key + difference.text.removeprefix(what))


def _tools(last: Names, now: Names) -> Iterator[Difference]:
    for name in sorted(last.keys() | now.keys()):
        old, new = last.get(name, "none"), now.get(name, "none")
        if old != new:
            yield Difference(f"tools.{name}", old, new, f"{name} {old} → {new}")


def _code(last: KeyState, now: KeyState) -> Iterator[Difference]:
    old, new = last.parts["code"], now.parts["code"]
    if old == new:
        return
    if last.code is None or now.code is None:
        yield Difference("code", old, new, "code changed")
    else:
        yield from _names("code", last.code, now.code, str)


def _watch(last: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> Iterator[Difference]:
    for name in sorted(last.keys() | now.keys()):
        old, new = last.get(name), now.get(name)
        if old == new:
            continue
        if old is None or new is None:
            text = f"{name} {'added' if old is None else 'removed'}"
        elif old[_SIZE] != new[_SIZE]:
            text = f"{name} changed ({old[_SIZE]} → {new[_SIZE]} bytes)"
        else:
            text = f"{name} touched"
        yield Difference(f"watch.{name}", _show(old), _show(new), text)


def _inputs(last: KeyState, now: KeyState, labels: Mapping[str, tuple[str, str]]) -> Iterator[Difference]:
    old_inputs, new_inputs = last.parts["inputs"], now.parts["inputs"]
    for port in sorted(old_inputs.keys() | new_inputs.keys()):
        old, new = old_inputs.get(port, ""), new_inputs.get(port, "")
        if old == new:
            continue
        if port in now.groups and port in last.groups:
            label = partial(_entry, template=labels[port][1])
            yield from _names(f"inputs.{port}", last.groups[port], now.groups[port], label)
            continue
        what = labels[port][0] if port in labels else f"input {port}"
        verb = "added" if not old else "removed" if not new else "changed"
        yield Difference(f"inputs.{port}", old, new, f"{what} {verb}")


def _names(what: str, last: Names, now: Names, label: Callable[[str], str]) -> Iterator[Difference]:
    for name in sorted(last.keys() | now.keys()):
        old, new = last.get(name, ""), now.get(name, "")
        if old != new:
            verb = "added" if not old else "removed" if not new else "changed"
            yield Difference(f"{what}.{name}", old, new, f"{label(name)} {verb}")


def _entry(name: str, template: str) -> str:
    """Entry "0/params.bin" of the template quantize is "quantize[0] params.bin", "tensor/a" is "tensor a"."""
    head, slash, rest = name.partition("/")
    return f"{template}[{head}] {rest}" if template and slash else name.replace("/", " ", 1)


def _show(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return text if len(text) <= _VALUE_CHARS else text[: _VALUE_CHARS - 1] + "…"
