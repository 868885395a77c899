"""Which kernel each operator got, and why. Kernels say it where they decide; only who asks to know pays for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision in an operator's kernel. ``kernel``: what was chosen; ``reason``: why, in words; ``tile``: the
    parameters that it was made with, by name."""

    kernel: str
    reason: str
    tile: Mapping[str, int | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OperatorKernel:
    """A function of the library: the operator that it computes, what made its kernel ("module:function", or "" where
    the operator keeps its plain loops), and what was decided in it."""

    function: str
    operator: str
    fields: Mapping[str, Any]
    schedule: str
    choices: Sequence[Choice] = ()


_recorded: ContextVar[list[Choice] | None] = ContextVar("_recorded", default=None)


def choose(kernel: str, reason: str, **tile: int | str) -> None:
    """Record a decision in the kernel that is being made. The same one again is recorded once."""
    choices, choice = _recorded.get(), Choice(kernel, reason, tile)
    if choices is not None and choice not in choices:
        choices.append(choice)


@contextmanager
def recording() -> Iterator[list[Choice]]:
    """The choices of the kernels that are made inside."""
    choices: list[Choice] = []
    token = _recorded.set(choices)
    try:
        yield choices
    finally:
        _recorded.reset(token)


def name_of(make: Any) -> str:
    """A function that makes kernels, as tables here name it: "llm_build.lowering.schedules.cpu.linear:linear"."""
    return f"{make.__module__}:{make.__name__}"


def as_json(kernels: Sequence[OperatorKernel]) -> list[dict[str, Any]]:
    """Plain data, in the order of the functions' names."""
    return [asdict(kernel) for kernel in sorted(kernels, key=lambda each: each.function)]
