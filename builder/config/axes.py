"""What differs between the cells of a sweep: its axes, and where on them each cell lies."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llm_build.config.choices import CHOICE, GROUPS, Composed


class Axes(NamedTuple):
    """``names``: "model", "quant", "quant.budget"...; ``at``: {cell: its value on each}. A plain build has none."""

    names: tuple[str, ...] = ()
    at: Mapping[str, tuple[str, ...]] = {}


def axes_of(jobs: Sequence[Composed], names: Sequence[str]) -> Axes:
    """The choices and the other overrides that are not the same in all jobs; ``names`` are those of the cells."""
    settings = [{**job.choices, **_own_overrides(job)} for job in jobs]
    keys = dict.fromkeys((*GROUPS, *(key for setting in settings for key in setting)))
    axes = [key for key in keys if len({setting.get(key) for setting in settings}) > 1]
    at = {name: tuple(setting.get(key, "–") for key in axes) for name, setting in zip(names, settings, strict=True)}
    return Axes(tuple(axes), at)


def _own_overrides(job: Composed) -> dict[str, str]:
    """Overrides that choose no group: {"quant.budget": "4.5"}, without Hydra's escapes (hf\\://org/name) and quotes."""
    pairs = (text.lstrip("+~").partition("=") for text in job.overrides if not CHOICE.match(text))
    return {key: re.sub(r"\\(.)", r"\1", re.sub(r"^'(.*)'$", r"\1", value)) for key, _, value in pairs}
