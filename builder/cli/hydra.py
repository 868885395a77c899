"""What Hydra does itself: --cfg, --info, --hydra-help."""

from __future__ import annotations

from llm_build.app.request import folders_of
from llm_build.cli.arguments import Arguments
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
    return run_hydra([*flags, *normalise(arguments.overrides)], folders_of(arguments.build))
