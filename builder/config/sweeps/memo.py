"""A whole sweep, remembered: the jobs that Hydra made of a command line, so that the same line needs no Hydra.

What is remembered stands under the overrides and the state of every configuration file (compose.cache_key). Sections
that jobs share are written once, and are the same object in every job that is read back.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_build.config.choices import Composed, Folders
from llm_build.config.compose import cache_key, composed_of, is_pure
from llm_build.core.disk import read_whole
from llm_build.core.json_text import parse_json


def slot_of(overrides: Sequence[str], folders: Folders, cache: Path) -> Path:
    return cache / f"{cache_key(['--multirun', *overrides], folders)}.json"


def repeats(overrides: Sequence[str], folders: Folders) -> bool:
    """Whether a command line means the same tomorrow, and asks Hydra for nothing but jobs."""
    asks_more = any(o.startswith("hydra") and not o.startswith("hydra.sweeper.params.") for o in overrides)
    return not asks_more and is_pure(overrides, folders)


def recall(slot: Path) -> list[Composed] | None:
    try:
        stored = parse_json(read_whole(slot), max_depth=None)
        sections, choices = stored["sections"], stored["choices"]
        return [
            composed_of({name: sections[at] for name, at in values.items()}, choices[chosen], overrides, sweeps)
            for values, chosen, overrides, sweeps in stored["jobs"]
        ]
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def remember(slot: Path, jobs: Sequence[Composed]) -> None:
    """Best effort, as compose.remember. Values that JSON changes (keys that are numbers) are not remembered."""
    sections, choices = Table(), Table()
    try:
        rows = [
            [{name: sections.at(value) for name, value in job.values.items()}, choices.at(job.choices), job.overrides,
             job.sweeps]
            for job in jobs
        ]  # fmt: skip
        text = json.dumps({"sections": sections.values, "choices": choices.values, "jobs": rows})
        if json.loads(text)["sections"] != sections.values:
            return
        slot.parent.mkdir(parents=True, exist_ok=True)
        temporary = slot.with_suffix(f".{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(slot)
    except (OSError, TypeError):
        return


class Table:
    """Equal values once, by number."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._known: dict[str, int] = {}

    def at(self, value: Any) -> int:
        text = json.dumps(value)
        if text not in self._known:
            self._known[text] = len(self.values)
            self.values.append(value)
        return self._known[text]
