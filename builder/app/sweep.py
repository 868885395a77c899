"""Sweeps (-m) through Hydra's sweeper."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from builder.app.request import composition_cache, distinct, folders_of
from builder.cli.arguments import Arguments
from builder.config.compose import Composed, check_choices, guard, normalise, shipped
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
    run_hydra(arguments, argv, launched)
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


def run_hydra(arguments: Arguments, argv: list[str], sweep: Callable[[list[Composed], bool], list[Any]] | None) -> int:
    """hydra.main over our configuration. Its errors come back as ours (HYDRA_FULL_ERROR makes it raise them)."""
    import hydra

    from builder.config.hydra_plugins import register

    os.environ["HYDRA_FULL_ERROR"] = "1"
    folders = folders_of(arguments)
    register(folders, sweep)

    @hydra.main(  # type: ignore[untyped-decorator]
        config_path=str(shipped("conf")), config_name="build", version_base="1.3"
    )
    def app(config: Any) -> int:
        """One job of another launcher than ours (joblib, submitit): a build of its own."""
        return one_job(arguments, config)

    old, sys.argv = sys.argv, [str(Path(sys.argv[0])), *argv]
    try:
        guard(app, folders)
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = old
    return 0


def one_job(arguments: Arguments, config: Any) -> int:
    """0. Raises StepError for a job that failed: a launcher hands on errors, and no exit codes."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    from builder.cli.build import finish, run_jobs
    from builder.config.compose import to_plain

    whole = OmegaConf.create({"hydra": HydraConfig.get()})
    with open_dict(config):
        whole = OmegaConf.merge(whole, config)
    overrides = list(HydraConfig.get().overrides.task)
    if code := finish(arguments, run_jobs(arguments, [to_plain(whole, overrides)])):
        said = f"the job {' '.join(overrides)} ended with exit code {code}"
        raise StepError(said, "what it printed says why; submitit keeps that in .submitit below hydra.sweep.dir")
    return 0
