"""app: what the project of an app includes, laid out as MLC's own packaging lays it out."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping
from typing import Any

from llm_build.core.step_io import File, InputFiles, Json, Out
from llm_build.formats.archive import static_library
from llm_build.steps.ports import group

_PACKAGE = "mlc-package-config.json"  # what `mlc_llm package` reads
CONFIG = "mlc-app-config.json"  # what the app reads
PLACES = {  # by kind: (device as `mlc_llm package` names it, static library, the app's configuration)
    "ios_app": ("iphone", "lib/libmodel_iphone.a", f"bundle/{CONFIG}"),
    "android_app": ("android", "lib/libmodel_android.a", f"lib/mlc4j/src/main/assets/{CONFIG}"),
}
_CARD = "README.md"


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Outputs: the static library and the objects that it is made of, bundle/<name>/ with weights and tokenizer, the
    app's configuration, and one for `mlc_llm package`. See docs/guides/apps.md.

    Args:
        params: {"name", "kind" ("ios_app", "android_app"), "library" (file name of the objects), "model_lib" (the name
            that its symbols start with), "memory_bytes" (that running takes)}.
        inputs: {"package": the artifact's files by name}.
    """
    artifact = group(inputs["package"])
    device, library, config = PLACES[params["kind"]]
    objects = f"lib/{params['library']}"
    out.link(objects, artifact[params["library"]])
    out.path(library).write_bytes(static_library(members(artifact[params["library"]], params["model_lib"])))
    for name, file in artifact.items():
        if name not in (params["library"], _CARD):
            out.link(f"bundle/{params['name']}/{name}", file)
    write(out, config, {"model_list": [entry(params, device)]})
    write(out, _PACKAGE, _package_config(params, device, objects))
    card = artifact[_CARD].path.read_text("utf-8")
    out.path(_CARD).write_text(f"{card}\n{_explanation(params, library, config)}", "utf-8")


def members(library: File, model_lib: str) -> dict[str, bytes]:
    """The objects by names that are short, and the library's own."""
    with tarfile.open(library.path) as archive:
        contents = [archive.extractfile(member) for member in archive.getmembers()]
        digits = model_lib.rpartition("_")[2]
        return {f"{digits}{i}.o": content.read() for i, content in enumerate(contents) if content is not None}


def entry(params: Mapping[str, Json], device: str) -> dict[str, Any]:
    """A model as the apps' configuration lists it. iOS reads weights out of the app's bundle; Android looks for them
    in the app's files first, under the model's id, and takes the address only if they are not there."""
    name = params["name"]
    place = {"model_path": name} if device == "iphone" else {"model_url": f"bundle/{name}"}
    known = {"model_id": name, "model_lib": params["model_lib"], "estimated_vram_bytes": params["memory_bytes"]}
    return {**known, **place}


def _package_config(params: Mapping[str, Json], device: str, objects: str) -> dict[str, Any]:
    model = {
        "model": f"bundle/{params['name']}",
        "model_id": params["name"],
        "model_lib": params["model_lib"],
        "estimated_vram_bytes": params["memory_bytes"],
        "bundle_weight": True,
    }
    return {
        "device": device,
        "model_list": [model],
        "model_lib_path_for_prepare_libs": {params["model_lib"]: objects},
    }


def write(out: Out, name: str, value: Json) -> None:
    out.path(name).write_text(json.dumps(value, indent=2) + "\n", "utf-8")


def _explanation(params: Mapping[str, Json], library: str, config: str) -> str:
    return f"""## In an app

| | |
|---|---|
| `{library}` | the model's code; its symbols start with `{params["model_lib"]}_` |
| `{config}` | what the app reads; `model_lib` is that name |
| `bundle/{params["name"]}/` | weights, tokenizer, chat configuration |
| `{_PACKAGE}` | for `mlc_llm package`, run in this folder: it takes this library and adds MLC's own |

Step by step: docs/guides/apps.md of llm-build.
"""
