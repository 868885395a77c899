"""What Hydra needs to know of us: where choices and recipes lie, and how a sweep's jobs run as one graph.

The classes are registered by hand (hydra.core.plugins.Plugins.register), so nothing is scanned for.
https://hydra.cc/docs/advanced/plugins/intro/
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc
from yaml import YAMLError

from llm_build.config.choices import PRIMARY, Composed, Folders, shipped
from llm_build.config.from_hydra import to_plain
from llm_build.config.hydra_rules import SWEEPERS, check_hydra, check_search_path, check_variable
from llm_build.config.strict import format_value
from llm_build.config.sweeps.batch import compose_jobs
from llm_build.config.yaml_files import invalid_yaml, read_text
from llm_build.core.errors import UserError

Launched = Callable[[list[Composed], bool], list[Any]]
BASIC = (SWEEPERS["one_graph"], SWEEPERS["basic"])


@dataclass(frozen=True, slots=True)
class Session:
    """What the plugins need of whoever started Hydra. ``typed``: the words of the command line. ``launched`` receives
    all the jobs of one batch, and whether the same command would make the same jobs again; it returns one value for
    each."""

    folders: Folders
    typed: tuple[str, ...] = ()
    launched: Launched | None = None


# Hydra makes the plugins itself, from their class names, so what they need cannot be handed to them.
_SESSION: ContextVar[Session] = ContextVar("llm_build_hydra_session")


@contextmanager
def plugins(folders: Folders, typed: Sequence[str] = (), launched: Launched | None = None) -> Iterator[None]:
    """While it is open Hydra finds our configuration files, and hands the jobs of a sweep to ``launched``."""
    with _without_current_folder():  # Hydra imports every module of hydra_plugins that it finds
        registry = Plugins.instance()
    for plugin in (ChoiceSource, RecipeSource, OurSearchPath, OneGraphSweeper, OneGraphLauncher):
        registry.register(plugin)
    if "hydra_plugins" not in sys.modules:
        sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
    sys.modules[OneGraphLauncher.__module__] = sys.modules[__name__]
    token = _SESSION.set(Session(folders, tuple(typed), launched))
    try:
        with _checked():
            yield
    finally:
        _SESSION.reset(token)


@contextmanager
def _without_current_folder() -> Iterator[None]:
    before = list(sys.path)
    sys.path[:] = [entry for entry in before if entry and Path(entry).resolve() != Path.cwd()]
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _checked() -> Iterator[None]:
    """Whatever Hydra composes is held to hydra_rules before Hydra looks at it."""
    load = ConfigLoaderImpl.load_configuration

    def checked(self: Any, config_name: str | None, overrides: list[str], *more: Any, **named: Any) -> DictConfig:
        config: DictConfig = load(self, config_name, overrides, *more, **named)
        node = OmegaConf.to_container(config.hydra, resolve=False)
        plain = {str(key): value for key, value in node.items()} if isinstance(node, dict) else {}
        check_hydra(plain, _SESSION.get().typed, overrides)
        return config

    def env(name: str, *default: Any) -> Any:
        check_variable(name)
        return oc.env(name, *default)

    ConfigLoaderImpl.load_configuration = checked
    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


class OurSearchPath(SearchPathPlugin):  # type: ignore[misc]
    """The user's ./conf and ./recipes before the shipped ones."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        folders, main = _SESSION.get().folders, SearchPathQuery(provider="main")
        for folder in folders.conf[:-1]:
            search_path.prepend("user", f"choices://{folder}", main)
        for folder in folders.recipes:
            search_path.append("recipes", f"recipes://{folder}")


class ChoiceSource(FileConfigSource):  # type: ignore[misc]
    """A folder of the user's own choices. What is wrong in a file is said with the file's name."""

    @staticmethod
    def scheme() -> str:
        return "choices"

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path) / self._normalize_file_name(config_path)
        text = read_text(path)
        try:
            config = OmegaConf.create(text) if text.strip() else OmegaConf.create({})
        except (YAMLError, OmegaConfBaseException, RecursionError, ValueError) as error:
            raise invalid_yaml(path, error) from error
        if not isinstance(config, DictConfig):
            raise UserError(f"{path}: holds a list; allowed: a mapping of keys and values")
        _name_choices(config)
        if config_path in (PRIMARY, f"{PRIMARY}.yaml"):
            config = _over_shipped(config, path)
        header = self._get_header_dict(text[:512])
        return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", config, header)


def _name_choices(config: DictConfig) -> None:
    """``- override /verify: off`` means the choice of that name: YAML reads off and on as booleans, and names of digits
    as numbers."""
    defaults = config._get_node("defaults")
    for item in defaults if isinstance(defaults, ListConfig) else ():
        for key in item if isinstance(item, DictConfig) else ():
            value = item._get_node(key)._value()
            if isinstance(value, bool):
                item[key] = "on" if value else "off"
            elif isinstance(value, (int, float)):
                item[key] = str(value)


def _over_shipped(own: DictConfig, path: Path) -> DictConfig:
    """A user's own conf/build.yaml lies over ours: it says what is different, a key or the default of a group."""
    said = OmegaConf.to_container(own)
    own_defaults, hydra = said.get("defaults") or [], said.get("hydra")
    if isinstance(hydra, dict):
        check_search_path(hydra.get("searchpath"), path)
    elif hydra is not None:  # ${...}: Hydra would look for a search path in what it stands for
        raise UserError(f"{path}: hydra is {format_value(hydra)}; allowed: a mapping of keys and values")
    if not isinstance(own_defaults, list):
        raise UserError(f"{path}: defaults is {own_defaults!r}; allowed: a list, such as [quant: q8f16_1]")
    config = OmegaConf.load(shipped("conf") / f"{PRIMARY}.yaml")
    for key in set(config) & set(own):
        if isinstance(config[key], DictConfig) and not isinstance(own[key], DictConfig):
            raise UserError(f"{path}: {key} is {format_value(own[key])}; allowed: a mapping of keys and values")
    defaults: list[Any] = OmegaConf.to_container(config["defaults"])
    places = {_group_of(item): at for at, item in enumerate(defaults)}
    for item in own_defaults:
        at = places.get(_group_of(item))
        if at is None:
            defaults.insert(places["hydra/launcher"], item)  # before those that override what others chose
        elif isinstance(item, dict):
            defaults[at] = dict.fromkeys(defaults[at], next(iter(item.values())))
    merged = OmegaConf.merge(config, own)
    merged["defaults"] = defaults
    return merged


def _group_of(item: Any) -> str:
    """quant for {"override /quant": q8f16_1}; an item without a choice is its own."""
    return str(next(iter(item))).removeprefix("override ").strip("/ ") if isinstance(item, dict) else str(item)


class RecipeSource(ChoiceSource):
    """A folder of recipes, seen by Hydra as the group "recipe"; each lies over the whole configuration."""

    @staticmethod
    def scheme() -> str:
        return "recipes"

    def load_config(self, config_path: str) -> ConfigResult:
        result = super().load_config(_below(config_path))
        if result.header.get("package") is None:
            result.header["package"] = "_global_"
        return result

    def is_group(self, config_path: str) -> bool:
        return config_path in ("", "recipe") or (_in_group(config_path) and super().is_group(_below(config_path)))

    def is_config(self, config_path: str) -> bool:
        return _in_group(config_path) and super().is_config(_below(config_path))

    def available(self) -> bool:
        return bool(super().is_group(""))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        if config_path == "":
            return [] if results_filter == ObjectType.CONFIG else ["recipe"]
        names: list[str] = super().list(_below(config_path), results_filter)
        return [n for n in names if not n.endswith(".lock")]


def _in_group(config_path: str) -> bool:
    return config_path.startswith("recipe/")


def _below(config_path: str) -> str:
    return config_path.removeprefix("recipe").removeprefix("/")


class OneGraphLauncher(Launcher):  # type: ignore[misc]
    """Composes every job of a batch and hands them over together."""

    __module__ = "hydra_plugins.llm_build"  # Hydra instantiates launchers of this package only

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        launched = _SESSION.get().launched
        assert launched is not None
        Path(self.config.hydra.sweep.dir).mkdir(parents=True, exist_ok=True)  # sweepers write what they found there
        values = launched(self.compose(job_overrides), self.repeats())
        done = []
        for overrides, value in zip(job_overrides, values, strict=True):
            job = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            job.return_value = value
            done.append(job)
        return done

    def compose(self, job_overrides: Sequence[Sequence[str]]) -> list[Composed]:
        loader = self.context.config_loader

        def load(overrides: Sequence[str]) -> DictConfig:
            config: DictConfig = loader.load_sweep_config(self.config, list(overrides))
            OmegaConf.set_struct(config, False)
            return config

        if self.config.hydra.searchpath:  # other files than those that the loader's repository has
            return [to_plain(load(overrides), overrides) for overrides in job_overrides]
        return compose_jobs(job_overrides, load, loader.repository, self.config.hydra.job.config_name)

    def repeats(self) -> bool:
        """Whether the sweep is a product of lists in one batch: then it follows from the command line alone."""
        sweeper, callbacks = self.config.hydra.sweeper, self.config.hydra.get("callbacks")
        return sweeper._target_ in BASIC and sweeper.max_batch_size is None and not callbacks


class OneGraphSweeper(Sweeper):  # type: ignore[misc]
    """Hydra's basic sweeper. It composes every job to see that this can be done; so does our launcher, a moment later,
    and other launchers need it."""

    __module__ = "hydra_plugins.llm_build"

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None = None) -> None:
        from hydra._internal.core_plugins.basic_sweeper import BasicSweeper  # Hydra loads it anew when it starts

        self.basic = BasicSweeper(max_batch_size, params)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.basic.setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if isinstance(self.basic.launcher, OneGraphLauncher):
            self.basic.validate_batch_is_legal = lambda batch: None

    def sweep(self, arguments: list[str]) -> Any:
        return self.basic.sweep(arguments)
