"""What every verb starts from: the recipes that were asked for, their plan, the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from llm_build.app.options import BuildOptions
from llm_build.config import compose
from llm_build.config.axes import Axes
from llm_build.config.choices import Composed, Folders, find_folders
from llm_build.config.paths import store_path
from llm_build.config.schema import LOCAL, Executor, Recipe
from llm_build.core.errors import BuildError
from llm_build.core.filestore import FileStore
from llm_build.core.plan import Plan

UNDECIDED = "the steps after allocate can be planned when it has picked the rules of quant.budget: build"


@dataclass(frozen=True)
class BuildRequest:
    """What is to be built and where: the recipes of one command, merged into one plan.

    ``refused``: cells of a sweep that cannot be built, by name. ``names``: all cells, in the order of the sweep.
    ``axes``: what differs between them. ``excluded``: what sweep.exclude left out; no cell. ``key``: signs build.json.
    ``notes``: what the user should read about the sweep before it starts. ``replace``: folders of other recipes, too.
    """

    recipes: tuple[Recipe, ...]
    plan: Plan
    store: FileStore
    dist: Path
    names: tuple[str, ...]
    refused: Mapping[str, BuildError] = field(default_factory=dict)
    axes: Axes = field(default_factory=Axes)
    excluded: Sequence[object] = ()
    key: Path | None = None
    executor: Executor = LOCAL
    notes: tuple[str, ...] = ()
    replace: bool = False

    @cached_property
    def outputs(self) -> dict[str, Path]:
        return {name: self.dist / name for name in self.names}

    @property
    def is_sweep(self) -> bool:
        return len(self.names) > 1


def composition_cache() -> Path:
    return store_path() / "cache" / "compose"


def folders_of(options: BuildOptions) -> Folders:
    return find_folders(options.config_dir)


def compose_one(options: BuildOptions) -> Composed:
    """The overrides as one job."""
    return compose.compose(options.overrides, composition_cache(), options.config_dir)


def is_sweep(options: BuildOptions) -> bool:
    """-m, or a recipe that says itself what is swept (hydra.sweeper.params)."""
    if options.single or options.multirun or not any(o.startswith("recipe=") for o in options.overrides):
        return options.multirun
    return compose_one(options).sweeps
