"""web_page: an artifact's files with a page that chats with them, as one folder for any file server."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from llm_build.core.step_io import File, InputFiles, Json, Out
from llm_build.steps.ports import group

_TEMPLATE = Path(__file__).resolve().parents[1] / "web_page"
_FEATURES = {b"f16": "shader-f16", b"subgroups": "subgroups"}
_FILES = ("index.html", "chat.css", "chat.js")


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Outputs: the page, web-llm.js with its licence, page.json, and the artifact under resolve/<revision>/.

    WebLLM asks for files under resolve/, as Hugging Face has them, and keeps them by address; so the revision is a
    digest of the artifact.

    Args:
        params: {"name", "library" (its file name), "family", "scheme" (its name), "template" (digest of the page's own
            files, identity only)}.
        inputs: {"package": the artifact's files by name, "engine": {"web-llm.js", "web-llm.LICENSE.txt"}}.
    """
    artifact = group(inputs["package"])
    revision = _revision_of(artifact)
    for name, file in artifact.items():
        out.link(name if name == "README.md" else f"resolve/{revision}/{name}", file)
    for name, file in group(inputs["engine"]).items():
        out.link(name, file)
    for name in _FILES:
        shutil.copyfile(_TEMPLATE / name, out.path(name))
    cache = json.loads(artifact["tensor-cache.json"].path.read_bytes())
    page = {
        "name": params["name"],
        "family": params["family"],
        "quantization": params["scheme"],
        "library": params["library"],
        "revision": revision,
        "features": _features_of(artifact[params["library"]].path.read_bytes()),
        "weights_bytes": sum(shard["nbytes"] for shard in cache["records"]),
        "largest_tensor_bytes": max(record["nbytes"] for shard in cache["records"] for record in shard["records"]),
    }
    out.path("page.json").write_text(json.dumps(page, indent=1) + "\n", "utf-8")


def _features_of(library: bytes) -> list[str]:
    """What the kernels in a library enable beside plain WebGPU (https://www.w3.org/TR/WGSL/#enable-extensions-sec)."""
    return [feature for enabled, feature in _FEATURES.items() if b"enable " + enabled + b";" in library]


def _revision_of(files: Mapping[str, File]) -> str:
    """12 hex digits of a digest over names and contents."""
    whole = "".join(f"{name}\0{file.digest}\n" for name, file in sorted(files.items()))
    return hashlib.sha256(whole.encode()).hexdigest()[:12]
