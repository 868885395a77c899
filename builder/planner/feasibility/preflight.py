"""What can be known to fail is refused before any work: the headers of a checkpoint, the folders to write to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from llm_build.config.schema import Recipe
from llm_build.core.errors import BuildError, UserError
from llm_build.core.events import Finished
from llm_build.core.plan import Plan
from llm_build.core.run import Outcome
from llm_build.core.status import Status
from llm_build.formats.quantized import Packing
from llm_build.planner.schemes import imported


def check_folder(folder: Path) -> None:
    """Raises UserError when nothing can be written at ``folder`` (which need not exist yet)."""
    existing = next(path for path in (folder, *folder.parents) if os.path.exists(path))
    if not existing.is_dir():
        raise UserError(f"dist.path: {existing} is a file, not a folder", "dist.path=/another/folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"dist.path: no permission to write to {existing}", "dist.path=/another/folder")


def check_checkpoint(recipe: Recipe) -> None:
    """Headers, index and weight map of a safetensors checkpoint, without reading a weight.

    Raises UserError for a file that is truncated or lies about itself, and for a tensor that is missing, extra or of
    the wrong shape. A .bin checkpoint has no header to look at: it is checked when it is read.
    """
    checkpoint = recipe.checkpoint
    if checkpoint.format != "safetensors":
        return
    packing = Packing(**recipe.quant.packing) if recipe.quant.packing else None
    imported.weight_map(recipe.family, recipe.architecture, packing, imported.layout_of(checkpoint))


def refused_outcome(plan: Plan, errors: Mapping[str, BuildError]) -> Outcome:
    """The outcome of a build that was not started: ``errors`` by step id, everything else is skipped."""
    steps = {}
    for step in plan.steps.values():
        error = errors.get(step.id)
        status: Status = "failed" if error else "skipped"
        reason = "refused before any work" if error else "not started: a step cannot work"
        steps[step.id] = Finished(
            step.id, step.name, status, reason, error=error, validation=step.validation, role=step.role
        )
    return Outcome(plan, steps, {})
