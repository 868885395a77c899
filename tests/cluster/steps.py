"""Steps that go wrong in ways that only a cluster has."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from typing import Any

from llm_build.core.step_io import Out


def strand(params: Mapping[str, Any], inputs: Mapping[str, Any], out: Out) -> None:
    """Kills the Ray process that this step's worker belongs to."""
    with open(params["lives"], "a") as lives:
        lives.write("x")
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)


def where(params: Mapping[str, Any], inputs: Mapping[str, Any], out: Out) -> None:
    """Says which store it ran with, on its log and in its result."""
    out.warn("be careful")
    print("said on the node", flush=True)
    out.path("store").write_text(os.environ["LLM_BUILD_STORE"])
