"""What comes back from Hydra: a composed DictConfig as plain data, a refusal as one of our errors."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from typing import Any

from llm_build.config.choices import GROUPS, Composed, Folders, choices_of, unknown_choice
from llm_build.config.literal_paths import quote
from llm_build.core.errors import UserError


def to_plain(config: Any, overrides: Sequence[str]) -> Composed:
    """A composed DictConfig as plain data, interpolations resolved."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    made = config.hydra.runtime.choices
    choices = {g: c for g, c in made.items() if g in GROUPS and isinstance(c, str)}
    if missing := [group for group in GROUPS if group != "recipe" and group not in choices]:
        found = made.get(missing[0])
        raise UserError(
            f"{missing[0]}: {f'found {found}' if found else 'nothing is chosen'}; allowed: one choice of the group",
            f"build list {missing[0]}",
        )
    sweeps = bool(config.hydra.sweeper.get("params"))
    with open_dict(config):
        config.pop("hydra")
        config.pop("recipe", None)
    try:
        values = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {_first_line(error)}", "build --cfg job") from error
    return Composed(values, choices, tuple(overrides), sweeps)


def guard(call: Callable[[], Any], folders: Folders) -> Any:
    """Hydra's refusals in our words."""
    from hydra.errors import HydraException, MissingConfigException, OverrideParseException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return call()
    except OverrideParseException as error:
        raise _unreadable(str(error.override)) from error
    except MissingConfigException as error:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if group in GROUPS:
            raise unknown_choice(group, choice, list(choices_of(group, folders))) from error
        raise UserError(_first_line(error), "build list") from error
    except YAMLError as error:
        raise UserError("a configuration file is not valid YAML: " + " ".join(str(error).split())) from error
    except (HydraException, OmegaConfBaseException) as error:
        if "Ambiguous value" in str(error):
            asked = re.search(r"argument '(.*?)'", str(error))
            line = shlex.quote(asked[1].lstrip("+")) if asked else "..."
            raise UserError(f"{_first_line(error)}: several values make a sweep", f"build -m {line}") from error
        text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]
        raise UserError(f"the recipe does not compose: {text}", "build --help") from error
    except (AssertionError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        if not _is_theirs(error):
            raise
        raise UserError(
            f"the recipe does not compose: {type(error).__name__}: {_first_line(error)[:400]}",
            "look at the defaults list and the ${...} of the files that the command names",
        ) from error


def _unreadable(override: str) -> UserError:
    """The error for an override that Hydra's grammar cannot read, with the command that means it literally."""
    key, _, value = override.partition("=")
    return UserError(
        f"the recipe does not compose: {override.lstrip('+')}: the value has characters that mean something in an "
        "override ([ ] { } ( ) ' \" # = and others); allowed: such a value in quotes",
        "build " + shlex.quote(f"{key.lstrip('+')}={quote(value)}") + "   means it as it is",
    )


def _is_theirs(error: BaseException) -> bool:
    """Whether Hydra, OmegaConf or YAML raised it over what they were given to read; else it is a defect of ours."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""
    return module.partition(".")[0] in ("hydra", "omegaconf", "yaml", "antlr4")


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
