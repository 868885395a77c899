"""What Hydra does itself: --cfg, --info, --hydra-help, tab completion."""

from __future__ import annotations

import os

from llm_build.app.request import folders_of
from llm_build.cli.arguments import Arguments
from llm_build.cli.commands import COMMANDS
from llm_build.config.choices import check_choices
from llm_build.config.compose import normalise
from llm_build.config.run_hydra import run_hydra


def show(arguments: Arguments) -> int:
    """Hands the line to hydra.main and prints what Hydra prints."""
    options = arguments.options
    flags = []
    if options.cfg:
        check_choices(arguments.overrides, folders_of(arguments.build))
        flags += ["--cfg", options.cfg]
    flags += ["--package", options.package] if options.package else []
    flags += ["--resolve"] if options.resolve else []
    flags += ["--info", options.info] if options.info else []
    flags += ["--hydra-help"] if options.hydra_help else []
    flags += ["--shell-completion"] if options.shell_completion else []
    overrides = list(arguments.overrides) if options.shell_completion else normalise(arguments.overrides)
    _forget_command()
    return run_hydra([*flags, *overrides], folders_of(arguments.build))


def _forget_command() -> None:
    """Tab completion after `build plan ...`: Hydra must not take the command for an override."""
    line = os.environ.get("COMP_LINE", "").split(" ")
    if len(line) > 1 and line[1] in COMMANDS:
        cut = len(line.pop(1)) + 1
        os.environ["COMP_LINE"] = " ".join(line)
        os.environ["COMP_POINT"] = str(int(os.environ.get("COMP_POINT", "0")) - cut)
