"""``sweep.exclude``: combinations of a sweep that are left out, by rule.

A rule is a mapping, and a cell that matches every key of it is left out:

    sweep:
      exclude:
        - {quant: "e4m3*", target: webgpu}              # of choices: shell patterns
        - {model: [llama2_70b, qwen3_32b], target: "rtx*"}   # any of a list
        - {quant.budget: 3.0}                           # of any key, by its value
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from llm_build.config.choices import GROUPS, SECTIONS, Composed
from llm_build.config.schema import Sweep
from llm_build.config.strict import Where, format_value, nearest_names, nowhere, parse
from llm_build.core.errors import UserError
from llm_build.core.units import count_of

Rule = Mapping[str, Any]
_ABSENT = object()
_EXAMPLE = "'sweep.exclude=[{quant:\"e4m3*\",target:webgpu}]'"


class SortedCells(NamedTuple):
    """``idle``: rules that match no cell, in words."""

    kept: list[Composed]
    excluded: list[Composed]
    idle: list[str]


def apply_rules(jobs: Sequence[Composed], where: Where = nowhere) -> SortedCells:
    """Raises UserError for a rule that cannot be one, names no key, or when nothing is left."""
    rules = {written(rule): rule for job in jobs for rule in _rules_of(job, where)}
    for text, rule in rules.items():
        check(rule, text, jobs, where)
    kept, excluded, used = list[Composed](), list[Composed](), set[str]()
    for job in jobs:
        hits = {written(rule) for rule in _rules_of(job, where) if matches(rule, job)}
        used |= hits
        (excluded if hits else kept).append(job)
    if jobs and not kept:
        raise UserError(
            f"sweep.exclude{where('sweep.exclude')} leaves none of {count_of(len(jobs), 'cell')}", "build list"
        )
    return SortedCells(kept, excluded, [text for text in rules if text not in used])


def _rules_of(job: Composed, where: Where) -> tuple[Rule, ...]:
    section = job.values.get("sweep")
    return parse(Sweep, section, "sweep", where).exclude if section else ()


def check(rule: object, text: str, jobs: Sequence[Composed], where: Where) -> None:
    """Raises UserError for a rule without keys, or with one that no cell has."""
    at = f"sweep.exclude{where('sweep.exclude')}"
    if not isinstance(rule, Mapping) or not rule:
        raise UserError(f"{at}: {text} is no rule; a rule is a mapping of choices or keys to patterns", _EXAMPLE)
    for key in rule:
        if all(_value_of(str(key), job) is _ABSENT for job in jobs):
            known = [*GROUPS, *_keys_of(jobs[0].values, str(key).partition(".")[0])]
            near = nearest_names(str(key), known)
            suggestion = (
                f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(GROUPS)}, or a dotted key"
            )
            raise UserError(f"{at}: {key} in {text} is neither a choice group nor a key; {suggestion}", _EXAMPLE)


def matches(rule: Rule, job: Composed) -> bool:
    return all(_agrees(_value_of(str(key), job), wanted) for key, wanted in rule.items())


def _agrees(value: Any, wanted: Any) -> bool:
    """``wanted``: a pattern or a value, or a list of them."""
    if isinstance(wanted, list):
        return any(_agrees(value, one) for one in wanted)
    return value is not _ABSENT and (value == wanted or fnmatchcase(written(value), written(wanted)))


def _value_of(key: str, job: Composed) -> Any:
    """The choice made in a group ("" for none), or the value of a dotted key."""
    if key in GROUPS:
        return job.choices.get(key, "")
    value: Any = job.values
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _keys_of(values: Mapping[str, Any], section: str) -> Collection[str]:
    """Dotted keys that a rule may name, those of one section if it is one."""
    sections = [section] if section in SECTIONS else SECTIONS
    return [f"{name}.{key}" for name in sections for key in values.get(name) or {}]


def written(value: Any) -> str:
    """As on a command line: null, true, q4f16_1, {quant: e4m3*}."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {written(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return value if isinstance(value, str) else format_value(value)
