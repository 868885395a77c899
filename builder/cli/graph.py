"""`build graph`: the steps as text here, as Mermaid and SVG in files."""

from __future__ import annotations

import sys
from pathlib import Path

from builder.app.request import UNDECIDED, Job, folders_of, is_sweep, job_of, merge
from builder.cli.arguments import Arguments
from builder.core.errors import StepError, UserError
from builder.core.examine import examine
from builder.report import draw


def show(arguments: Arguments) -> int:
    if is_sweep(arguments):
        from builder.app.sweep import sweep

        return sweep(arguments, lambda jobs: print_graph(arguments, merge(jobs, folders_of(arguments))))
    return print_graph(arguments, job_of(arguments))


def print_graph(arguments: Arguments, job: Job) -> int:
    """Colours and words show what is fresh. Raises UserError when the files cannot be written."""
    status = statuses(job)
    print(draw.text(job.plan, status))
    if any(recipe.undecided for recipe in job.recipes):
        print(UNDECIDED)
    name = job.recipes[0].name if len(job.recipes) == 1 else "sweep"
    folder = Path(arguments.options.out or job.dist)
    files = {f"{name}.mmd": draw.mermaid(job.plan, status), f"{name}.svg": draw.svg(job.plan, status)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_text(content, encoding="utf-8")
            print(f"wrote {folder / file}", file=sys.stderr)
    except PermissionError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}", "build graph --out DIR") from error
    except OSError as error:
        raise StepError(f"{folder}: {error.strerror}") from error
    return 0


def statuses(job: Job) -> dict[str, str]:
    """hit, stale or waits for every step of the plan; a fan-out is a hit when all its parts are."""
    verdicts = examine(job.plan, job.store)
    found = {}
    for id_ in job.plan.steps:
        own = [v.status for v in verdicts.values() if v.step.id == id_ or v.step.id.startswith(f"{id_}[")]
        found[id_] = next((s for s in ("stale", "waits") if s in own), "hit")
    return found
