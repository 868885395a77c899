"""What a build tells whoever watches it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from llm_build.core.errors import BuildError
from llm_build.core.plan import Plan
from llm_build.core.status import Status
from llm_build.core.step import Role
from llm_build.core.step_io import Json


class Planned(NamedTuple):
    """What is going to be brought up to date; sent again when more of it is known."""

    plan: Plan


class Expanded(NamedTuple):
    """The items of a fan-out are known: step ids and their names."""

    template: str
    items: tuple[str, ...]
    names: tuple[str, ...]


class Started(NamedTuple):
    id: str
    name: str
    reason: str
    key: str


class Progress(NamedTuple):
    """``id`` is empty when it is about the store: files on their way from or to another one (``name`` download,
    upload). Then ``total`` may grow, and nothing is in flight when it is ``done``."""

    id: str
    name: str
    done: int
    total: int
    unit: str
    label: str


class Warned(NamedTuple):
    """``id`` and ``name`` are empty when it is about the store."""

    id: str
    name: str
    message: str


class Waiting(NamedTuple):
    """Another build (process ``pid``, 0 when unknown) runs this step; its result will be used."""

    id: str
    name: str
    pid: int


class Finished(NamedTuple):
    id: str
    name: str
    status: Status
    reason: str
    seconds: float = 0.0  # of the step itself; for a fresh one, what it took when it ran
    nbytes: int = 0
    key: str = ""
    error: BuildError | None = None
    facts: Mapping[str, Json] = {}
    validation: bool = False
    role: Role = ""


Event = Planned | Expanded | Started | Progress | Warned | Waiting | Finished
Listener = Callable[[Event], None]
