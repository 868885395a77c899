"""What a build is asked for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Overrides as on the command line, and what else decides what is built and how.

    ``config_dir``: another folder of choices, before all others. ``multirun``: the overrides are those of a sweep.
    ``locked``: only what the lock file says; ``lock_file``: another than recipes/NAME.lock.yaml. ``jobs``: steps at
    once, 0 for one per core. ``keep_going``: after a failure, build what does not depend on it. ``single``: no sweep,
    whatever the recipe says.
    """

    overrides: tuple[str, ...] = ()
    config_dir: str | None = None
    multirun: bool = False
    locked: bool = False
    lock_file: str | None = None
    jobs: int = 0
    keep_going: bool = False
    single: bool = False
