"""Who hears of a build and what runs its steps: handed to a use case by whoever starts it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llm_build.app.request import BuildRequest
from llm_build.core.events import Listener
from llm_build.core.task import Executor

if TYPE_CHECKING:
    from llm_build.report.matrix import Matrix


@dataclass(frozen=True, slots=True)
class Session:
    """``listen`` opens a listener, for a sweep over its matrix; ``executor`` opens what runs the steps of a request;
    ``warn`` hears what happens when no listener is open."""

    listen: Callable[[Matrix | None], AbstractContextManager[Listener]]
    executor: Callable[[BuildRequest], AbstractContextManager[Executor]]
    warn: Listener


def open_executor(request: BuildRequest, jobs: int) -> AbstractContextManager[Executor]:
    """What the recipe asks for; it reaches no cluster before a step is stale. ``jobs``: steps at once, 0: as many as
    there are processors."""
    if request.executor.kind == "ray":
        from llm_build.config.paths import store_path
        from llm_build.executors.ray import RayExecutor

        return RayExecutor(request.store, request.executor.address, store_path, jobs)
    return local_executor(request, jobs)


def local_executor(request: BuildRequest, jobs: int = 0) -> AbstractContextManager[Executor]:
    """Worker processes of this machine."""
    from llm_build.executors import local

    return local.LocalExecutor(request.store, local.capacity(jobs))
