"""What comes back from Hydra: a composed DictConfig as plain data, a refusal as one of our errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from builder.config.choices import GROUPS, Composed, Folders, choices_of, unknown_choice
from builder.core.errors import UserError


def to_plain(config: Any, overrides: Sequence[str]) -> Composed:
    """A composed DictConfig as plain data, interpolations resolved."""
    from omegaconf import OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    choices = {g: str(c) for g, c in config.hydra.runtime.choices.items() if g in GROUPS and c is not None}
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
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        return call()
    except MissingConfigException as error:
        group, _, choice = (error.missing_cfg_file or "").rpartition("/")
        if group in GROUPS:
            raise unknown_choice(group, choice, list(choices_of(group, folders))) from error
        raise UserError(_first_line(error), "build list") from error
    except YAMLError as error:
        raise UserError("a configuration file is not valid YAML: " + " ".join(str(error).split())) from error
    except (HydraException, OmegaConfBaseException) as error:
        if "Ambiguous value" in str(error):
            raise UserError(f"{_first_line(error)}: several values make a sweep", "build -m ...") from error
        text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:400]
        raise UserError(f"the recipe does not compose: {text}", "build --help") from error


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
