"""Whether the programs here are those that a step was planned with: on a cluster it runs where it is sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from builder.core.errors import UserError
from builder.core.step import Json
from builder.targets import android, apple, cuda, link, webgpu


def linker(params: Mapping[str, Json]) -> str:
    target = params["target"]
    if target["kind"] == "opencl":
        return f"NDK {android.ndk_version()}"
    return link.identity("" if link.is_native(target["triple"]) else target["triple"])


IDENTITIES: Mapping[str, Callable[[Mapping[str, Json]], str]] = {  # parameter of a step -> what is found here
    "linker": linker,
    "compiler": lambda _: cuda.identity(),
    "kernels": lambda _: apple.identity(),
    "emscripten": lambda _: webgpu.emcc_version(),
}


def check_planned(params: Mapping[str, Json]) -> None:
    """``params`` of lower, runtime.wasm or link. Raises UserError where another program would make the result."""
    for name, find in IDENTITIES.items():
        if name in params and (found := find(params)) != params[name]:
            raise UserError(
                f"this step was planned with the {name} {params[name]!r}, and here is {found!r}",
                "give every node the programs of the machine which plans, best one container image for all",
            )
