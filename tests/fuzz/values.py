"""Changes of a JSON-like value, which know its structure: wrong types, numbers without end, deep nesting, odd texts."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

from tests.fuzz.rules import PAYLOAD

# Texts that stand for what a JSON writer does not write
_RAW = {
    "@@digits@@": "9" * 5000,
    "@@exponent@@": "1e400",
    "@@minus@@": "-" + "9" * 4000,
    "@@nested@@": "[" * 100_000 + "]" * 100_000,
    "@@objects@@": '{"a":' * 20_000 + "1" + "}" * 20_000,
    "@@deep@@": "[" * 70 + "]" * 70,
    "@@long@@": '"' + "x" * 2_000_000 + '"',
    "@@half@@": '"\\ud800"',
    "@@many@@": "[" + "0," * 300_000 + "0]",
}
_TEXTS = [
    "", " ", "\0", "\n", "x" * 300, "é" * 200, "☃" * 90, "../../x", "/etc/passwd", "a/../b", "..", ".", "C:\\x", "~",
    "a b", "\u202e", "\ufeff", "{}", "{{", "%s", "${oc.env:HOME}", "${x}", "${", "null", "NaN", "1", "-1", "auto",
    "hf://a/b", "http://127.0.0.1:1/x", "file:///etc/passwd", "\x1b[31m", "'", '"', "*", "&a", "!!python/none",
    "\ud800", f"__import__('os').system({PAYLOAD!r})", f"$({PAYLOAD})",
    f"{{{{ cycler.__init__.__globals__.os.popen({PAYLOAD!r}) }}}}",
]  # fmt: skip
_NUMBERS: list[Any] = [
    0, 1, -1, 2, 3, 7, 63, 64, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, 2**64,
    10**18, 10**100, -(2**63) - 1, 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308, 1e15, float("inf"), float("-inf"),
    float("nan"),
]  # fmt: skip
_OTHERS: list[Any] = [None, True, False, [], {}, [[]], [None], [{}], {"": None}, {"x": {}}, [1, "x", None], [[1], 2]]


def any_value(rng: Random) -> Any:
    """A value of any type."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(_NUMBERS)
    if kind < 0.55:
        return rng.choice(_TEXTS)
    if kind < 0.65:
        return rng.choice(list(_RAW))
    if kind < 0.75:
        return [any_value(rng) for _ in range(rng.randrange(4))]
    if kind < 0.85:
        return {rng.choice(_TEXTS): any_value(rng) for _ in range(rng.randrange(3))}
    return copy.deepcopy(rng.choice(_OTHERS))


def changed(rng: Random, value: Any, changes: int | None = None) -> Any:
    """A copy of ``value`` with one or several places changed."""
    value = copy.deepcopy(value)
    for _ in range(changes or rng.choice([1, 1, 1, 2, 2, 3, 6])):
        value = _change(rng, value)
    return value


def _places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything below a value."""
    found, open_ = [], [value]
    while open_:
        node = open_.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            found.append((node, key))
            open_.append(node[key])
    return found


def _change(rng: Random, value: Any) -> Any:
    places = _places(value)
    if not places or rng.random() < 0.01:
        return any_value(rng)
    node, key = _one_of(rng, places)
    rng.choice(_CHANGES)(rng, node, key)
    return value


def _one_of(rng: Random, places: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Half of the times one near the top: there are fewer of them, and more is read of them."""
    return rng.choice(places[:40] if rng.random() < 0.5 else places)


def _replace(rng: Random, node: Any, key: Any) -> None:
    node[key] = any_value(rng)


def _near(rng: Random, node: Any, key: Any) -> None:
    """A value of the same type."""
    old = node[key]
    if isinstance(old, bool):
        node[key] = not old
    elif isinstance(old, (int, float)):
        node[key] = rng.choice([old + 1, old - 1, -old, old * 2, old * 1000003, rng.choice(_NUMBERS)])
    elif isinstance(old, str):
        cut = rng.randrange(len(old) + 1)
        node[key] = rng.choice(
            [old[:cut], old[cut:], old + old, old[:cut] + rng.choice(_TEXTS) + old[cut:], old.upper()]
        )
    else:
        _replace(rng, node, key)


def _remove(rng: Random, node: Any, key: Any) -> None:
    del node[key]


def _rename(rng: Random, node: Any, key: Any) -> None:
    """Or, in a list, repeat."""
    if isinstance(node, dict):
        node[rng.choice(_TEXTS) if rng.random() < 0.7 else str(key) + "x"] = node.pop(key)
    else:
        node[key:key] = [copy.deepcopy(node[key])] * rng.choice([1, 2, 100])


def _add(rng: Random, node: Any, key: Any) -> None:
    if isinstance(node, dict):
        node[rng.choice([*_TEXTS, "_target_", "hydra", "auto_map", "type", "version"])] = any_value(rng)
    else:
        node.append(any_value(rng))


def _move(rng: Random, node: Any, key: Any) -> None:
    """Another value of the same container."""
    node[key] = copy.deepcopy(node[rng.choice(list(node) if isinstance(node, dict) else range(len(node)))])


def _wrap(rng: Random, node: Any, key: Any) -> None:
    node[key] = [node[key]] if rng.random() < 0.5 else {"x": node[key]}


_Change = Callable[[Random, Any, Any], None]
_CHANGES: list[_Change] = [_replace, _replace, _replace, _near, _near, _remove, _rename, _add, _move, _wrap]


def to_json(rng: Random, value: Any) -> bytes:
    """A document of a value, with what no writer writes: a name twice, numbers and nesting without end."""
    text = json.dumps(value, ensure_ascii=rng.random() < 0.8, indent=rng.choice([None, None, 1]))
    text = re.sub('"(@@[a-z]+@@)"(?! *:)', lambda match: _RAW.get(match[1], match[0]), text)
    if rng.random() < 0.06 and (names := list(re.finditer(r'"[^"\\]*": ?', text))):
        name = rng.choice(names)
        text = text[: name.start()] + name[0] + rng.choice(["1", "null", "[]", '"x"']) + ", " + text[name.start() :]
    return text.encode("utf-8", "surrogatepass")


def to_yaml(rng: Random, value: Any) -> bytes:
    """The same in YAML; where its writer cannot write it, as JSON, which YAML is too."""
    import yaml

    if rng.random() < 0.7:
        try:
            return yaml.safe_dump(value, allow_unicode=True).encode()
        except (yaml.YAMLError, UnicodeEncodeError, ValueError, RecursionError):
            pass
    return to_json(rng, value)
