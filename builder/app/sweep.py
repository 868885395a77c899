"""Sweeps (-m) through Hydra's sweeper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from builder.app.request import composition_cache, distinct, folders_of
from builder.cli.arguments import Arguments
from builder.config.choices import Composed, check_choices
from builder.config.compose import normalise
from builder.config.sweeps import memo
from builder.core.errors import StepError
from builder.planner.resolve import name_of, places

Finish = Callable[[Sequence[Composed]], int]


def sweep(arguments: Arguments, build: Finish) -> int:
    """Hydra's sweeper makes the jobs, our launcher collects them, ``build`` brings them all up to date in one plan.

    Returns the worst exit code of the batches (a sweeper may launch several). A line whose jobs are remembered needs
    no Hydra.
    """
    overrides, folders = arguments.overrides, folders_of(arguments)
    check_choices([o for o in overrides if "," not in o], folders)
    slot = memo.slot_of(overrides, folders, composition_cache())
    if known := memo.recall(slot):
        return build(known)
    codes: list[int] = []

    def launched(jobs: list[Composed], whole: bool) -> list[Any]:
        if whole and memo.repeats(overrides, folders):
            memo.remember(slot, jobs)
        code = build(jobs)
        codes.append(code)
        return returned(jobs, code)

    argv = ["--multirun", *normalise(overrides)]
    if not any("hydra.sweep.dir" in o for o in overrides):
        argv.append(f"hydra.sweep.dir={composition_cache().parent / 'sweeps'}")
    from builder.config.run_hydra import run_hydra

    run_hydra(argv, folders, launched, partial(one_job, arguments))
    return max(codes, default=0)


def returned(jobs: Sequence[Composed], code: int) -> list[float]:
    """What each job of a batch is worth to the sweeper: its sweep.objective, nan where it was not built, or where it
    has none the exit code."""
    from builder.config.sweeps.objective import objective_of, worth

    objective = objective_of(jobs[0])
    if not objective:
        return [code] * len(jobs)
    dist = places(jobs[0]).dist
    return [float("nan") if code else worth(dist / name_of(job), objective) for job in distinct(jobs)]


def one_job(arguments: Arguments, job: Composed) -> None:
    """A job of another launcher than ours: a build of its own. Raises StepError for one that failed: a launcher hands
    on errors, and no exit codes."""
    from builder.cli.build import finish, run_jobs

    if code := finish(arguments, run_jobs(arguments, [job])):
        said = f"the job {' '.join(job.overrides)} ended with exit code {code}"
        raise StepError(said, "what it printed says why; submitit keeps that in .submitit below hydra.sweep.dir")
