"""What a recipe's target is to lowering: TVM's target, the kernels for it, and what they are written for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from llm_build.lowering.kernel_modules import Kernels, backend
from llm_build.lowering.progress import StageProgress
from llm_build.targets import cpu

Pass = tuple[str, Any]  # its name for people, and the pass


@dataclass(frozen=True, slots=True)
class Machine:
    """``tvm``: TVM's target, with its host; ``traits``: what kernels ask of the machine (an Isa or GpuTraits);
    ``description``: the recipe's target; ``prefix``: of the symbols of a library that is linked into an app, where
    there may be others."""

    tvm: Any
    kernels: Kernels
    traits: Any
    description: Mapping[str, Any]
    prefix: str = ""

    @property
    def kind(self) -> str:
        return str(self.description["kind"])

    @property
    def library(self) -> str:
        """What the library's file ends with."""
        return str(self.description.get("library", "so"))


class Backend(Protocol):
    """What a module of builder/lowering/backends exports, one for each kind of target."""

    def machine_of(self, target: Mapping[str, Any], prefix: str = "") -> Machine:
        """From the recipe's target, as a dict."""

    def passes(self, machine: Machine) -> list[Pass]:
        """From kernels to what ``generate`` takes, in order."""

    def generate(self, functions: Any, machine: Machine, progress: StageProgress) -> Any:
        """The module of machine code."""

    def metadata(self, model: Any, target: Mapping[str, Any]) -> dict[str, Any]:
        """What a runtime has to know of the library because of its kind of target."""

    def elementwise(
        self, args: Sequence[Any], count: int, store: Callable[..., Callable[[Any], None]], traits: Any
    ) -> Any:
        """A kernel of ``args`` (schedules/function.py) that runs ``store(*buffers)(index)`` for each index under
        ``count``."""


def machine_of(target: Mapping[str, Any], prefix: str = "") -> Machine:
    """From the recipe's target, as a dict."""
    machine: Machine = backend(target["kind"]).machine_of(target, prefix)
    return machine


def host_target(target: Mapping[str, Any]) -> dict[str, Any]:
    """TVM's target of the code that runs on the CPU."""
    description: dict[str, Any] = {"kind": "llvm", "mtriple": target["triple"]}
    if target["cpu"] not in ("", cpu.ARM):
        description["mcpu"] = target["cpu"]
    if target["features"]:
        description["mattr"] = [f"+{name}" for name in target["features"]]
    return description
