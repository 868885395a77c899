"""What the tests in a browser need, and the demo built for one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Shell

HERE = Path(__file__).parent
SWITCH = "LLM_BUILD_BROWSER_TESTS"  # off: skip them; require: fail when a tool is missing, as CI does
PROGRAMS = ("emcc", "chromium", "node", "npm")
INSTALL = "apt-get install emscripten chromium nodejs npm && npm ci --ignore-scripts --prefix tests/browser"


@pytest.fixture(scope="session", autouse=True)
def tools() -> None:
    """Skips, or with the switch on "require" fails, where the tests cannot run."""
    wanted = os.environ.get(SWITCH, "")
    if wanted == "off":
        pytest.skip(f"{SWITCH}=off")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if not (HERE / "node_modules" / ".package-lock.json").exists():
        missing.append("tests/browser/node_modules")
    if missing:
        say = pytest.fail if wanted == "require" else pytest.skip
        say(f"no {', '.join(missing)}: {INSTALL}")


@pytest.fixture(scope="session")
def built(tools: None, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The demo: for browsers without and with shader-f16, with and without a page, and for the CPU."""
    folder = tmp_path_factory.mktemp("browser")
    (folder / "work").mkdir()
    shell = Shell(folder / "work", folder / "store")
    shell.run("-m", "quant=q4f32_1", "target=webgpu-f32", "package=mlc,web_page", "verify=off")
    shell.run("-m", "quant=q4f16_1", "target=webgpu", "package=mlc,web_page", "verify=off")
    shell.run("quant=q4f32_1", "target=cpu", "verify=off")
    return shell


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Address of a plain file server."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("localhost", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_port}"
    finally:
        server.shutdown()


def node(script: str, *words: str) -> dict[str, Any]:
    """What a script of this folder prints, which is one JSON document."""
    environment = {**os.environ, "CHROMIUM": shutil.which("chromium") or ""}
    command = ["node", script, *words]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return json.loads(done.stdout)
