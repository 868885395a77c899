"""Whether the programs here are those that a step was planned with: on a cluster it runs where it is sent.

What says so of each program is found by name, so that a step's key has the programs that it runs and no others.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from llm_build.core.errors import UserError
from llm_build.core.step_io import Json

LINKERS: dict[str, str] = {  # kind of target -> what links its objects to a .so
    "cpu": "llm_build.targets.link",
    "cuda": "llm_build.targets.link",
    "opencl": "llm_build.targets.android",
}
_IDENTITIES: dict[str, str] = {  # parameter of a step -> what finds the same here
    "compiler": "llm_build.targets.cuda:identity",
    "kernels": "llm_build.targets.apple:identity",
    "emscripten": "llm_build.targets.webgpu:emcc_version",
}


def linker_identity(target: Mapping[str, Json]) -> str:
    """Which linker makes a target's .so here."""
    identity: str = import_module(LINKERS[target["kind"]]).linker_identity(target["triple"])
    return identity


def tool_identity(name: str) -> str:
    """Which program there is here for a parameter of ``IDENTITIES``."""
    module, _, function = _IDENTITIES[name].partition(":")
    identity: str = getattr(import_module(module), function)()
    return identity


def check_planned_tools(params: Mapping[str, Json]) -> None:
    """``params`` of lower, runtime.wasm or link. Raises UserError where another program would make the result."""
    here = {name: tool_identity(name) for name in _IDENTITIES if name in params}
    if "linker" in params:
        here["linker"] = linker_identity(params["target"])
    for name, identity in here.items():
        if identity != params[name]:
            raise UserError(
                f"this step was planned with the {name} {params[name]!r}, and here is {identity!r}",
                "give every node the programs of the machine which plans, best one container image for all",
            )
