"""Hydra's own program over our configuration: a sweep by its sweeper and launcher, --cfg, --info, tab completion."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llm_build.config.choices import PRIMARY, Composed, Folders, shipped
from llm_build.config.from_hydra import guard, to_plain
from llm_build.config.hydra_plugins import Launched, plugins

_FULL_ERROR = "HYDRA_FULL_ERROR"


def run_hydra(
    argv: Sequence[str],
    folders: Folders,
    launched: Launched | None = None,
    one_job: Callable[[Composed], None] | None = None,
) -> int:
    """As hydra.main with this command line, without its sys.argv. Returns the exit code; raises UserError for what
    Hydra refuses.

    Args:
        launched: receives the jobs of a sweep, a batch at a time (see hydra_plugins.plugins).
        one_job: runs a job of another launcher than ours (joblib, submitit), which may be in another process.
    """
    from hydra import version
    from hydra._internal.utils import _run_hydra, get_args_parser

    def app(config: Any) -> None:
        assert one_job is not None, "only a sweep runs jobs"
        one_job(_composed(config))

    version.setbase("1.3")
    parser = get_args_parser()
    arguments = parser.parse_args(list(argv))
    logging.raiseExceptions = False  # --info is logged: each line into a closed pipe would be a traceback
    with _raised_errors(), plugins(folders, argv, launched):
        try:
            guard(lambda: _run_hydra(arguments, parser, app, str(shipped("conf")), PRIMARY), folders)
        except SystemExit as end:
            return int(end.code or 0)
    return 0


@contextmanager
def _raised_errors() -> Iterator[None]:
    """Hydra prints its errors and exits, unless this variable makes it raise them; it has no other switch."""
    before = os.environ.get(_FULL_ERROR)
    os.environ[_FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FULL_ERROR]
        else:
            os.environ[_FULL_ERROR] = before


def _composed(config: Any) -> Composed:
    """The job that another launcher runs here."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf, open_dict

    merged = OmegaConf.create({"hydra": HydraConfig.get()})
    with open_dict(config):
        merged = OmegaConf.merge(merged, config)
    return to_plain(merged, list(HydraConfig.get().overrides.task))
