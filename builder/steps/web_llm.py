"""web_page.engine: the JavaScript that runs models in browsers, unmodified from npm."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.targets import npm


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """params {"name", "version", "integrity"} of the package -> web-llm.js, web-llm.LICENSE.txt."""
    package = npm.NpmPackage(params["name"], params["version"], params["integrity"])
    files = {"lib/index.js": out.path("web-llm.js"), "LICENSE": out.path("web-llm.LICENSE.txt")}
    with tempfile.TemporaryDirectory(prefix="llm-build-") as folder:
        npm.unpack(package, files, Path(folder))
