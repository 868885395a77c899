"""What a recipe, a choice or an override may say to Hydra. Nothing that they name is imported or called.

Hydra makes objects of whatever class stands under ``_target_`` in its own node: callbacks, launchers, sweepers.
Python's logging does so for ``()``, ``class`` and ``ext://``
(https://docs.python.org/3/library/logging.config.html). Files that come with a cloned repository would run code that
way. Hydra 1.3.8 refuses some names by a list of its own; here only what is listed passes, whatever Hydra's version.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
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
# Keys of optuna and submitit whose values are run, or reach the shell of a job
_CODE = ("custom_search_space", "setup", "python", "srun_args", "additional_parameters")
_MADE = ("_target_", "()", "class", "factory")  # keys under which something is imported
_EMPTY = ("callbacks", "job.env_set")
_OFF = ("job.chdir", "output_subdir")
_LOGGING = ("hydra_logging", "job_logging")
_FOLDERS = {  # where Hydra makes folders, with its own defaults
    "run.dir": ".",
    "sweep.dir": "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}",
    "sweep.subdir": "${hydra.job.num}",
}
# Interpolations that give a text, whatever the files say: any other may stand for a mapping with _target_ in it, which
# nobody sees before Hydra makes it (${oc.create:...}, ${model.x})
_TEXTS = re.compile(
    r"\$\{(hydra[.:](job\.(name|id|num|override_dirname)|sweep\.(dir|subdir)|run\.dir|runtime\.(cwd|output_dir))"
    r"|(now|oc\.env):[^${}]*)\}"
)
_SECRET = re.compile(r"SECRET|PASSW|TOKEN|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|ACCOUNT_?KEY", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # a terminal takes them for commands; not tab and line feed


def check_hydra(node: Mapping[str, Any], typed: Sequence[str] = (), given: Sequence[str] = ()) -> None:
    """Raises UserError for what is not allowed in ``hydra``, a composed node as plain data, nothing resolved.

    Args:
        typed: words of the command line, which may say more than files.
        given: the overrides that Hydra composed it with; those of a sweep's job are not all typed.
    """
    keys = {word.lstrip("+~").partition("=")[0] for word in typed}
    _check_what_is_set(node, keys, given)
    for kind, allowed in _PLUGINS.items():
        _check_plugin(kind, node.get(kind) or {}, allowed, keys)
    for key in _EMPTY:
        if value := _at(node, key):
            names = ", ".join(map(str, value)) if isinstance(value, Mapping) else value
            raise _refused(key, names, "nothing: what it names would run, or reach the programs that a build runs")
    for key in _OFF:
        if value := _at(node, key):
            raise _refused(key, value, "null")
    for kind in _LOGGING:
        for part in ("handlers", "formatters", "filters", "loggers"):
            if value := _at(node, f"{kind}.{part}"):
                names = ", ".join(map(str, value)) if isinstance(value, Mapping) else value
                raise _refused(f"{kind}.{part}", names, f"hydra/{kind}=none or disabled")
    for path, key, value in _walk({name: part for name, part in node.items() if name not in _PLUGINS}, "hydra"):
        where = f"{path}.{key}".removeprefix("hydra.")
        if key in _MADE or (isinstance(value, str) and value.startswith("ext://")):
            raise _refused(where, value, "no name of anything to import")
        if isinstance(value, str) and where.startswith(_LOGGING) and "${" in value:
            raise _refused(where, value, "no ${...}")
        if isinstance(value, str) and _CONTROL.search(value):
            raise _refused(where, repr(value), "no control characters")


def _check_what_is_set(node: Mapping[str, Any], typed: set[str], given: Sequence[str]) -> None:
    """Texts where a mapping belongs, and what belongs to the command line alone."""
    for name, value in node.items():
        if isinstance(value, str) and "${" in value:
            raise _refused(name, value, "no ${...}")
    for key, usual in _FOLDERS.items():
        value = _at(node, key)
        if value not in (None, usual) and not _is_typed(f"hydra.{key}", typed) and not _stays_below(str(value)):
            raise _refused(key, value, "a folder below this one; on the command line any")
    if node.get("mode") is not None and not any(word.startswith("hydra.mode=") for word in given):
        raise _refused("mode", str(node["mode"]).rpartition(".")[2], "build -m on the command line")
    for kind in ("hydra", "task"):
        if forged := [word for word in _at(node, f"overrides.{kind}") or () if word not in given]:
            raise _refused(f"overrides.{kind}", ", ".join(map(str, forged)), "nothing: overrides are typed")


def _stays_below(folder: str) -> bool:
    parts = re.split(r"[/\\]", folder)
    return bool(folder) and parts[0] != "" and not {"..", "~"} & set(parts) and not re.search(r"\$\{|^~|^\w:", folder)


def _is_typed(key: str, typed: set[str]) -> bool:
    names = key.split(".")
    return any(".".join(names[:count]) in typed for count in range(2, len(names) + 1))


def check_variable(name: str) -> None:
    """Raises UserError for a variable that ${oc.env:...} must not read: values go into build.json, locks and names."""
    if _SECRET.search(name):
        raise UserError(
            f"${{oc.env:{name}}}: found a variable that holds a secret; allowed: others, for values are written down"
        )


def check_search_path(entries: Any, path: object) -> None:
    """Raises UserError for a hydra.searchpath of the file ``path`` that leads into a Python package: looking for its
    files imports it."""
    for entry in entries if isinstance(entries, list) else [entries] if entries else []:
        if "${" in str(entry) or ("://" in str(entry) and not str(entry).startswith("file://")):
            raise UserError(
                f"{path}: hydra.searchpath: found {entry}; allowed: folders (file://...)", "build --cfg job"
            )


def _check_plugin(kind: str, node: Mapping[str, Any], allowed: Mapping[str, str], typed: set[str]) -> None:
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
        own, where = path == f"hydra.{kind}", f"{path}.{key}"
        is_sampler = path == "hydra.sweeper.sampler" and key == "_target_" and _SAMPLER.fullmatch(str(value))
        is_made = key in _MADE and not is_sampler and not (own and key == "_target_")
        if is_made or (own and key in _CODE and value and not _is_typed(where, typed)):
            raise _refused(where.removeprefix("hydra."), value, "null: what it names would run")
        if kind == "sweeper" and key.lstrip("+~").startswith("hydra") and not _is_typed(where, typed):
            raise _refused(where.removeprefix("hydra."), value, "no overrides of hydra: those are typed")
        if isinstance(value, str) and ("${" in _TEXTS.sub("", value) or _CONTROL.search(value) or "\n" in value):
            allowed_text = "one line of text; of ${...} texts of hydra, now and oc.env"
            raise _refused(where.removeprefix("hydra."), repr(value)[1:-1], allowed_text)


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
