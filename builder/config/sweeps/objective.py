"""``sweep.objective``: what a job is worth to a sweeper that looks for the best. It is read from build.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from builder.config.choices import Composed
from builder.core.errors import UserError

BYTES = "bytes"  # of all files of the artifact


def objective_of(job: Composed) -> str:
    """ "" when none is asked for: then a job is worth its exit code."""
    return str((job.values.get("sweep") or {}).get("objective") or "")


def worth(folder: Path, objective: str) -> float:
    """A figure that a step noted ("kl", "perplexity"), or "bytes"; nan where nothing was built. Raises UserError for a
    figure that no step noted."""
    if not (folder / "build.json").exists():
        return math.nan
    document = json.loads((folder / "build.json").read_bytes())
    if objective == BYTES:
        return float(sum((folder / subject["name"]).stat().st_size for subject in document["subject"]))
    found = numbers_in(document)
    if objective not in found:
        raise UserError(
            f"sweep.objective={objective}: no step of {folder.name} noted that; allowed: "
            f"{', '.join(sorted({*found, BYTES}))}",
            f"sweep.objective={BYTES}",
        )
    return found[objective]


def numbers_in(document: Mapping[str, object]) -> dict[str, float]:
    """Figures of all steps, as build.json keeps them."""
    found: dict[str, float] = {}
    run = document["predicate"]["runDetails"]  # type: ignore[index]
    for made in run["byproducts"]:
        for name, value in made.get("annotations", {}).get("facts", {}).items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[name] = float(value)
    return found
