"""What Hydra needs to know of us: where choices and recipes lie, and how a sweep's jobs run as one graph.

The classes are registered by hand (hydra.core.plugins.Plugins.register), so nothing is scanned for.
https://hydra.cc/docs/advanced/plugins/intro/
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Sequence
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from builder.compose import Composed, Folders, to_plain

Sweep = Callable[[list[Composed]], list[Any]]


class State:
    """What the plugins share with the command that started Hydra."""

    folders: Folders | None = None
    sweep: Sweep | None = None


def register(folders: Folders, sweep: Sweep | None = None) -> None:
    """``sweep`` receives all the jobs of one batch and returns one value for each."""
    State.folders, State.sweep = folders, sweep
    for plugin in (RecipeSource, OurSearchPath, OneGraphLauncher):
        Plugins.instance().register(plugin)
    if "hydra_plugins" not in sys.modules:
        sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
    sys.modules[OneGraphLauncher.__module__] = sys.modules[__name__]


class OurSearchPath(SearchPathPlugin):  # type: ignore[misc]
    """The user's ./conf and ./recipes before the shipped ones."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        assert State.folders is not None
        main = SearchPathQuery(provider="main")
        for folder in State.folders.conf[:-1]:
            search_path.prepend("user", f"file://{folder}", main)
        for folder in State.folders.recipes:
            search_path.append("recipes", f"recipes://{folder}")


class RecipeSource(FileConfigSource):  # type: ignore[misc]
    """A folder of recipes, seen by Hydra as the group "recipe"; each lies over the whole configuration."""

    @staticmethod
    def scheme() -> str:
        return "recipes"

    def load_config(self, config_path: str) -> ConfigResult:
        result = super().load_config(below(config_path))
        if result.header.get("package") is None:
            result.header["package"] = "_global_"
        return result

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "recipe") or (in_group(config_path) and super().is_group(below(config_path)))

    def is_config(self, config_path: str) -> bool:
        return in_group(config_path) and super().is_config(below(config_path))

    def available(self) -> bool:
        return bool(super().is_group(""))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else ["recipe"]
        names: list[str] = super().list(below(config_path), results_filter)
        return [n for n in names if not n.endswith(".lock")]


def in_group(config_path: str) -> bool:
    return config_path.startswith("recipe/")


def below(config_path: str) -> str:
    return config_path.removeprefix("recipe").removeprefix("/")


class OneGraphLauncher(Launcher):  # type: ignore[misc]
    """Composes every job of a batch and hands them over together."""

    __module__ = "hydra_plugins.llm_build"  # Hydra instantiates launchers of this package only

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        assert State.sweep is not None
        jobs = []
        for overrides in job_overrides:
            config = self.context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(config):
                jobs.append(to_plain(config, overrides))
        values = State.sweep(jobs)
        done = []
        for overrides, value in zip(job_overrides, values, strict=True):
            job = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            job.return_value = value
            done.append(job)
        return done
