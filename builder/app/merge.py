"""Composed jobs -> one request: what sweep.exclude leaves out, names that differ, one plan of all recipes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from llm_build.app.buildable import drop_unbuildable, with_decided_budgets
from llm_build.app.options import BuildOptions
from llm_build.app.places import open_store_at, places_of
from llm_build.app.request import BuildRequest, compose_one, folders_of
from llm_build.config.axes import axes_of
from llm_build.config.choices import CHOICE, Composed, Folders
from llm_build.config.schema import Recipe
from llm_build.core.errors import BuildError, Unsupported, UserError
from llm_build.core.units import count_of
from llm_build.planner import names as naming
from llm_build.planner import resolve
from llm_build.planner.cell_memo import CellMemo
from llm_build.planner.graph import graph


def request_of(options: BuildOptions) -> BuildRequest:
    """The request of a plain command line: one recipe."""
    return merge(pin_locked_revisions(options, [compose_one(options)]), folders_of(options))


def pin_locked_revisions(options: BuildOptions, jobs: Sequence[Composed]) -> Sequence[Composed]:
    """The jobs; where a lock holds for them their hf:// sources are at the revision that it has."""
    if not options.locked:
        return jobs
    from llm_build.app.lock_check import at_locked_revision

    return at_locked_revision(options, jobs)


def merge(jobs: Sequence[Composed], folders: Folders) -> BuildRequest:
    """Many composed jobs as one request. The store and dist folder are those of the first.

    A cell of a sweep that is Unsupported is kept as such; that of a plain build is raised.
    """
    recipes, refused, names = [], dict[str, BuildError](), []
    jobs, excluded, notes = _apply_sweep_exclude(jobs, folders) if len(jobs) > 1 else (jobs, (), ())
    memo = CellMemo()
    for composed in with_distinct_names(jobs):
        names.append(naming.name_of(composed))
        try:
            recipes.append(resolve.resolve(composed, folders, memo))
        except Unsupported as error:
            if len(jobs) == 1:
                raise
            refused[names[-1]] = error
    _check_pins(recipes)
    places = places_of(jobs[0])
    request = BuildRequest(
        tuple(recipes), graph.build_plan(recipes), open_store_at(places), places.dist, tuple(names), refused,
        axes_of(jobs, names), excluded, places.key, places.executor, notes,
        places.replace,
    )  # fmt: skip
    return with_decided_budgets(drop_unbuildable(request))


def _apply_sweep_exclude(
    jobs: Sequence[Composed], folders: Folders
) -> tuple[Sequence[Composed], Sequence[Composed], tuple[str, ...]]:
    """The jobs that sweep.exclude keeps, the others, and what the user should read about that."""
    if not any(job.section("sweep").get("exclude") for job in jobs):
        return jobs, (), ()
    from llm_build.config.sweeps.exclude import apply_rules

    result = apply_rules(jobs, resolve.origin_of(jobs[0], folders))
    notes = [f"warning: sweep.exclude: {rule} matches no cell" for rule in result.idle]
    if result.excluded:
        notes.insert(0, f"sweep.exclude: {len(result.excluded)} of {count_of(len(jobs), 'cell')} left out")
    return result.kept, result.excluded, tuple(notes)


def with_distinct_names(jobs: Sequence[Composed]) -> list[Composed]:
    """Jobs of a sweep that would share a name get one that says how they differ."""
    if len(jobs) == 1:
        return list(jobs)
    common = set.intersection(*(set(job.overrides) for job in jobs))
    named = []
    for job in jobs:
        own = [o.lstrip("+") for o in job.overrides if o not in common and not CHOICE.match(o)]
        if job.values.get("name") is None and own:
            stem = naming.default_name(job, [o.lstrip("+").partition("=")[0] for o in own])
            tail = ",".join(re.sub(r'[/\\<>:"|?*]+', "_", _last_part(o)) for o in own)  # "hf\://org" names no folder
            values = {**job.values, "name": f"{stem}-{tail}"}
        else:
            values = job.values
        named.append(replace(job, values=values))
    return named


def _last_part(override: str) -> str:
    """ "budget=4.5" of quant.budget=4.5."""
    key, equals, value = override.partition("=")
    return key.rpartition(".")[2] + equals + value


def _check_pins(recipes: Sequence[Recipe]) -> None:
    """Raises UserError when a tool that a recipe pins is not the one installed."""
    from importlib.metadata import PackageNotFoundError, version

    for recipe in recipes:
        for tool, wanted in recipe.pins.tools.items():
            try:
                installed = version(tool)
            except PackageNotFoundError:
                installed = "not installed"
            if installed != wanted:
                raise UserError(f"pins.tools.{tool} is {wanted}, found {installed}", f"pip install {tool}=={wanted}")
