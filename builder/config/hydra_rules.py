"""What a recipe, a choice or an override may say to Hydra. Nothing that they name is imported or called.

Hydra makes objects of whatever class stands under ``_target_`` in its own node: callbacks, launchers, sweepers.
Python's logging does so for ``()``, ``class`` and ``ext://``
(https://docs.python.org/3/library/logging.config.html). Files that come with a cloned repository would run code that
way. Hydra 1.3.8 refuses some names by a list of its own; here only what is listed passes, whatever Hydra's version.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from llm_build.core.errors import UserError

VARIABLE = "LLM_BUILD_HYDRA_PLUGINS"  # class names of other plugins that this user trusts, between commas
LAUNCHERS = {
    "one_graph": "hydra_plugins.llm_build.OneGraphLauncher",
    "basic": "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "joblib": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "submitit_local": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "submitit_slurm": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
}
SWEEPERS = {
    "one_graph": "hydra_plugins.llm_build.OneGraphSweeper",
    "basic": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "optuna": "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper",
    "ax": "hydra_plugins.hydra_ax_sweeper.ax_sweeper.AxSweeper",
    "nevergrad": "hydra_plugins.hydra_nevergrad_sweeper.nevergrad_sweeper.NevergradSweeper",
}
_PLUGINS = {"launcher": LAUNCHERS, "sweeper": SWEEPERS}
_SAMPLER = re.compile(r"optuna\.samplers\.[A-Za-z]+")  # of the optuna sweeper
_CODE = ("custom_search_space", "setup", "python")  # keys of optuna and submitit whose values are run
_MADE = ("_target_", "()", "class", "factory")  # keys under which something is imported
_EMPTY = ("callbacks", "job.env_set")
_OFF = ("job.chdir", "output_subdir")
_LOGGING = ("hydra_logging", "job_logging")


def check_hydra(node: Mapping[str, Any]) -> None:
    """Raises UserError for what is not allowed in ``hydra``, a composed node as plain data, nothing resolved."""
    for kind, allowed in _PLUGINS.items():
        _check_plugin(kind, node.get(kind) or {}, allowed)
    for key in _EMPTY:
        if value := _at(node, key):
            names = ", ".join(map(str, value)) if isinstance(value, Mapping) else value
            raise _refused(key, names, "nothing: what it names would run, or reach the programs that a build runs")
    for key in _OFF:
        if value := _at(node, key):
            raise _refused(key, value, "null")
    for kind in _LOGGING:
        for part in ("handlers", "formatters", "filters", "loggers"):
            if value := (node.get(kind) or {}).get(part):
                names = ", ".join(map(str, value)) if isinstance(value, Mapping) else value
                raise _refused(f"{kind}.{part}", names, f"hydra/{kind}=none or disabled")
    for path, key, value in _walk({name: part for name, part in node.items() if name not in _PLUGINS}, "hydra"):
        if key in _MADE or (isinstance(value, str) and value.startswith("ext://")):
            raise _refused(f"{path}.{key}".removeprefix("hydra."), value, "no name of anything to import")


def check_search_path(entries: Any, path: object) -> None:
    """Raises UserError for a hydra.searchpath of the file ``path`` that leads into a Python package: looking for its
    files imports it."""
    for entry in entries if isinstance(entries, list) else [entries] if entries else []:
        if "://" in str(entry) and not str(entry).startswith("file://"):
            raise UserError(
                f"{path}: hydra.searchpath: found {entry}; allowed: folders (file://...)", "build --cfg job"
            )


def _check_plugin(kind: str, node: Mapping[str, Any], allowed: Mapping[str, str]) -> None:
    trusted = {name.strip() for name in os.environ.get(VARIABLE, "").split(",")}
    target = str(node.get("_target_"))
    if target in trusted:
        return
    if target not in allowed.values():
        raise UserError(
            f"hydra.{kind}: found _target_: {target}; allowed: hydra/{kind}={'|'.join(allowed)}",
            f"trust another that you have installed: {VARIABLE}={target} build ...",
        )
    for path, key, value in _walk(node, f"hydra.{kind}"):
        own = path == f"hydra.{kind}"
        is_sampler = path == "hydra.sweeper.sampler" and key == "_target_" and _SAMPLER.fullmatch(str(value))
        is_made = key in _MADE and not is_sampler and not (own and key == "_target_")
        if is_made or (own and key in _CODE and value):
            raise _refused(f"{path}.{key}".removeprefix("hydra."), value, "null: what it names would run")


def _walk(value: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """(path of the node, key, value) of every key below."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield path, str(key), below
            yield from _walk(below, f"{path}.{key}")
    elif isinstance(value, list):
        for at, below in enumerate(value):
            yield path, str(at), below
            yield from _walk(below, f"{path}[{at}]")


def _at(node: Mapping[str, Any], path: str) -> Any:
    value: Any = node
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _refused(key: str, found: object, allowed: str) -> UserError:
    return UserError(f"hydra.{key}: found {found}; allowed: {allowed}", "build --cfg hydra")
