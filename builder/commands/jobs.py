"""What every command starts from: the recipes that were asked for, their plan, the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from builder import compose, graph, resolve
from builder.arguments import Arguments
from builder.core.filestore import FileStore, open_store
from builder.core.plan import Plan
from builder.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be built and where: the recipes of one command, merged into one plan."""

    recipes: tuple[Recipe, ...]
    plan: Plan
    store: FileStore
    dist: Path

    @property
    def outputs(self) -> dict[str, Path]:
        return {recipe.name: self.dist / recipe.name for recipe in self.recipes}


def composition_cache() -> Path:
    return resolve.store_path() / "cache" / "compose"


def folders_of(arguments: Arguments) -> compose.Folders:
    return compose.find_folders(arguments.options.config_dir)


def job_of(arguments: Arguments) -> Job:
    """The job of a plain command line: one recipe."""
    composed = compose.compose(arguments.overrides, composition_cache(), arguments.options.config_dir)
    return merge([composed], folders_of(arguments))


def merge(jobs: Sequence[compose.Composed], folders: compose.Folders) -> Job:
    """Many composed jobs as one. The store and dist folder are those of the first."""
    recipes = [resolve.resolve(composed, folders) for composed in distinct(jobs)]
    check_pins(recipes)
    places = resolve.places(jobs[0])
    return Job(tuple(recipes), graph.build_plan(recipes), open_store(places.store), places.dist)


def distinct(jobs: Sequence[compose.Composed]) -> list[compose.Composed]:
    """Jobs of a sweep that would share a name get one that says how they differ."""
    if len(jobs) == 1:
        return list(jobs)
    common = set.intersection(*(set(job.overrides) for job in jobs))
    done = []
    for job in jobs:
        own = [o.lstrip("+") for o in job.overrides if o not in common and not compose.CHOICE.match(o)]
        if job.values.get("name") is None and own:
            stem = "-".join(job.choices[g].replace("/", "-") for g in ("model", "quant", "target"))
            tail = ",".join(o.rpartition(".")[2].replace("/", "_") for o in own)
            values = {**job.values, "name": f"{stem}-{tail}"}
        else:
            values = job.values
        done.append(replace(job, values=values))
    return done


def check_pins(recipes: Sequence[Recipe]) -> None:
    """Raises UserError when a tool that a recipe pins is not the one installed."""
    from importlib.metadata import PackageNotFoundError, version

    from builder.core.errors import UserError

    for recipe in recipes:
        for tool, wanted in recipe.pins.tools.items():
            try:
                found = version(tool)
            except PackageNotFoundError:
                found = "not installed"
            if found != wanted:
                raise UserError(f"pins.tools.{tool} is {wanted}, found {found}", f"pip install {tool}=={wanted}")
