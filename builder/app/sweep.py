"""One request of a plain command line, or with -m those that Hydra's sweeper makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llm_build.app.merge import merge, pin_locked_revisions, request_of, with_distinct_names
from llm_build.app.options import BuildOptions
from llm_build.app.places import places_of
from llm_build.app.request import BuildRequest, composition_cache, folders_of, is_sweep
from llm_build.config.choices import Composed, check_choices
from llm_build.config.compose import normalise
from llm_build.core.errors import StepError, worst_code
from llm_build.planner.names import name_of

Handle = Callable[[BuildRequest], int]  # what is done with a request; the exit code


def each_request(options: BuildOptions, handle: Handle) -> int:
    """Hands the request of the command line to ``handle``, or those of its sweep. Returns the worst exit code."""
    if not is_sweep(options):
        return handle(request_of(options))
    return sweep(options, partial(_merged, options, handle))


def _merged(options: BuildOptions, handle: Handle, jobs: Sequence[Composed]) -> int:
    return handle(merge(pin_locked_revisions(options, jobs), folders_of(options)))


def sweep(options: BuildOptions, build: Callable[[Sequence[Composed]], int]) -> int:
    """Hydra's sweeper makes the jobs, our launcher collects them, ``build`` brings them all up to date in one plan.

    Returns the worst exit code of the batches (a sweeper may launch several). A line whose jobs are remembered needs
    no Hydra.
    """
    from llm_build.config.sweeps import memo  # a plain build has no time for it

    overrides, folders = options.overrides, folders_of(options)
    check_choices([o for o in overrides if "," not in o], folders)
    slot = memo.slot_of(overrides, folders, composition_cache())
    if known := memo.recall(slot):
        return build(_with_typed(known, overrides))
    codes: list[int] = []

    def launched(jobs: list[Composed], repeats: bool) -> list[Any]:
        if repeats and memo.repeats(overrides, folders):
            memo.remember(slot, jobs)
        jobs = _with_typed(jobs, overrides)
        code = build(jobs)
        codes.append(code)
        return objective_values(jobs, code)

    argv = ["--multirun", *normalise(overrides)]
    if not any("hydra.sweep.dir" in o for o in overrides):
        argv.append(f"hydra.sweep.dir={composition_cache().parent / 'sweeps'}")
    from llm_build.config.run_hydra import run_hydra

    run_hydra(argv, folders, launched, partial(_build_alone, build, overrides))
    return worst_code(codes)


def objective_values(jobs: Sequence[Composed], code: int) -> list[float]:
    """What each job of a batch returns to the sweeper: its sweep.objective, nan where it was not built, or where it
    has none the exit code."""
    from llm_build.config.sweeps.objective import objective_of, value_of

    objective = objective_of(jobs[0])
    if not objective:
        return [code] * len(jobs)
    dist = places_of(jobs[0]).dist
    named = with_distinct_names(jobs)
    return [float("nan") if code else value_of(dist / name_of(job), objective) for job in named]


def _with_typed(jobs: Sequence[Composed], words: tuple[str, ...]) -> list[Composed]:
    """The jobs with what was typed: a recipe's sweeper says overrides too, and those nobody typed."""
    return [replace(job, typed=words) for job in jobs]


def _build_alone(build: Callable[[Sequence[Composed]], int], typed: tuple[str, ...], job: Composed) -> None:
    """A job of another launcher than ours. Raises StepError for one that failed: a launcher hands on errors, and no
    exit codes."""
    if code := build(_with_typed([job], typed)):
        message = f"the job {' '.join(job.overrides)} ended with exit code {code}"
        raise StepError(message, "what it printed says why; submitit keeps that in .submitit below hydra.sweep.dir")
