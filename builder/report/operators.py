"""Which kernel each operator of a library got, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SCHEDULES = "llm_build.lowering.schedules."


def describe_kernels(kernels: Sequence[Mapping[str, Any]]) -> list[str]:
    """The table of operators.json for people: a line for each function, and one for each choice in it."""
    lines = []
    for kernel in kernels:
        schedule = str(kernel["schedule"]).removeprefix(_SCHEDULES) or "plain loops"
        lines.append(f"{kernel['function']}: {kernel['operator']} by {schedule}{_shape_in_words(kernel['fields'])}")
        for choice in kernel["choices"]:
            tile = ", ".join(f"{name} {value}" for name, value in choice["tile"].items())
            lines.append(f"  {choice['kernel']}: {choice['reason']}{f' ({tile})' if tile else ''}")
    return lines


def _shape_in_words(fields: Mapping[str, Any]) -> str:
    """What of the operator's fields decides most: its sizes and how its weight is stored."""
    names = ("n", "k", "width", "kind", "bits", "group_size", "dtype", "activation")
    every = {**fields, **fields.get("weight", {})}
    parts = [f"{name} {every[name]}" for name in names if every.get(name)]
    return f", {', '.join(parts)}" if parts else ""
