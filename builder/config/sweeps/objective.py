"""``sweep.objective``: the figure that a sweeper minimizes or maximizes. It is read from build.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from llm_build.config.choices import Composed
from llm_build.core.errors import UserError
from llm_build.core.json_text import parse_json

_BYTES = "bytes"  # of all files of the artifact


def objective_of(job: Composed) -> str:
    """ "" when none is asked for: then the value of a job is its exit code."""
    return str(job.section("sweep").get("objective") or "")


def value_of(folder: Path, objective: str) -> float:
    """A figure that a step noted ("kl", "perplexity"), or "bytes"; nan where nothing was built. Raises UserError for a
    figure that no step noted."""
    if not (folder / "build.json").exists():
        return math.nan
    document = parse_json((folder / "build.json").read_bytes())
    if objective == _BYTES:
        return float(sum((folder / subject["name"]).stat().st_size for subject in document["subject"]))
    figures = _numbers_in(document)
    if objective not in figures:
        raise UserError(
            f"sweep.objective={objective}: no step of {folder.name} noted that; allowed: "
            f"{', '.join(sorted({*figures, _BYTES}))}",
            f"sweep.objective={_BYTES}",
        )
    return figures[objective]


def _numbers_in(document: Mapping[str, object]) -> dict[str, float]:
    """Figures of all steps, as build.json keeps them."""
    figures: dict[str, float] = {}
    run = document["predicate"]["runDetails"]  # type: ignore[index]
    for made in run["byproducts"]:
        for name, value in made.get("annotations", {}).get("facts", {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                figures[name] = float(value)
    return figures
