"""Mixed precision: the ``rules`` of a recipe's scheme, made into rules that need nothing but themselves.

    rules:
      - match: "*.down_proj"          # fnmatch on the parameter's name without .weight; or a list, see below
        layers: first_last_eighth     # all (the default), first_last_eighth, or a list: [0, 1, [28, 31]]
        use: q8f16_1                  # another choice of conf/quant

A pattern that matches nothing is refused. A list of patterns is for the names of several families, some of which a
model does not have (a tied head is no parameter), so it may match nothing.

The first rule that matches a parameter decides. An eighth is rounded up, so that small models have one; the first and
the last eighth of the layers are those that llama.cpp gives more bits in its K mixtures (``use_more_bits`` in
ggml-org/llama.cpp, src/llama-quant.cpp), which also adds every third layer between them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from llm_build.core.errors import UserError
from llm_build.quant.layout import layer_of, stem_of

_KEYS = ("match", "layers", "use")
_LAYERS = "all, first_last_eighth, or a list of layers and [first, last] pairs"


def resolve(
    rules: Sequence[Mapping[str, Any]], names: Sequence[str], dtype: str, load: Callable[[str], dict[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """Rules as a recipe writes them -> as ``layout.scheme`` reads them.

    Args:
        rules: of the recipe.
        names: of the model's parameters.
        dtype: of the scheme that has the rules; one artifact has one dtype for what it does not pack.
        load: the name of a scheme -> its dict; UserError if there is none.
    """
    count = 1 + max((layer for name in names if (layer := layer_of(name)) is not None), default=-1)
    return tuple(_resolve(f"quant.rules[{index}]", rule, names, count, dtype, load) for index, rule in enumerate(rules))


def _resolve(
    path: str, rule: Mapping[str, Any], names: Sequence[str], count: int, dtype: str,
    load: Callable[[str], dict[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    for key in rule:
        if key not in _KEYS:
            near = get_close_matches(key, _KEYS, n=1) or _KEYS
            raise UserError(f"{path}.{key} is not a key of a rule; did you mean {', '.join(near)}?")
    match, use = _patterns(f"{path}.match", rule.get("match"), names), rule.get("use")
    if not isinstance(use, str):
        raise UserError(f"{path}.use: found {use!r}; allowed: the name of a scheme", "build list quant")
    scheme = load(use)
    if scheme.get("rules"):
        raise UserError(f"{path}.use: {use} has rules itself; allowed: a scheme without", "build list quant")
    if scheme["dtype"] != dtype:
        raise UserError(
            f"{path}.use: {use} has dtype {scheme['dtype']}; the scheme with the rules has {dtype}: a model has one",
            f"a scheme of conf/quant with dtype: {dtype}",
        )
    return {"match": match, "layers": _layers(f"{path}.layers", rule.get("layers", "all"), count), "use": scheme}


def _patterns(path: str, value: object, names: Sequence[str]) -> list[str]:
    patterns = [value] if isinstance(value, str) else value
    if not isinstance(patterns, list | tuple) or not patterns or not all(isinstance(p, str) for p in patterns):
        raise UserError(f"{path}: found {value!r}; allowed: a pattern such as '*.down_proj', or a list of patterns")
    stems = [stem_of(name) for name in names if name.endswith(".weight")]
    if isinstance(value, str) and not any(fnmatchcase(stem, value) for stem in stems):
        last = sorted({stem.rpartition(".")[2] for stem in stems})
        near = get_close_matches(value.rpartition(".")[2], last, n=1)
        hint = f"did you mean '*.{near[0]}'?" if near else f"the model has: {', '.join(last)}"
        raise UserError(f"{path}: {value} matches no parameter; {hint}")
    return list(patterns)


def _layers(path: str, value: object, count: int) -> list[int] | None:
    """Sorted layer numbers, or None for all parameters, those outside of layers included."""
    if value == "all":
        return None
    if value == "first_last_eighth":
        eighth = -(-count // 8)
        return [layer for layer in range(count) if layer < eighth or layer >= count - eighth]
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"{path}: found {value!r}; allowed: {_LAYERS}")
    layers: set[int] = set()
    for part in value:
        pair = [part, part] if isinstance(part, int) else part
        is_pair = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(end) is int for end in pair)
        if not is_pair or not 0 <= pair[0] <= pair[1] < count:
            raise UserError(f"{path}: found {part!r}; allowed: {_LAYERS}, from 0 to {count - 1}")
        layers.update(range(pair[0], pair[1] + 1))
    return sorted(layers)
