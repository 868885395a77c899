"""bench: speed, memory and load time of an artifact on this machine, measured in a fresh process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping

from llm_build.core.digest import check_code
from llm_build.core.errors import StepError
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.runtime import measured
from llm_build.steps.ports import group


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Write bench.json: {"machine", and what runtime.measured finds}.

    Args:
        params: "machine" (targets.host_machine.describe, of this machine), "prompt" (tokens), "contexts" (tokens).
        inputs: "package" (the artifact's files).

    Raises:
        StepError: the artifact cannot be loaded, or its process died.
    """
    package = group(inputs["package"])
    for name, file in package.items():
        if name.endswith(".so") and file.digest:
            check_code(file.path, file.digest)
    files = {name: str(file.path) for name, file in package.items()}
    request = {"files": files, "prompt": params["prompt"], "contexts": params["contexts"]}
    result = None
    for message in _said_by_process(request):
        if "error" in message:
            raise StepError(message["error"], message["hint"])
        result = message.get("result", result)
        if "done" in message:
            out.progress(message["done"], message["total"], "parts", message["label"])
    if result is None:
        raise StepError("the process that was measured ended without a result")
    whole = {"machine": params["machine"], **result}
    out.path("bench.json").write_text(json.dumps(whole, indent=1) + "\n")


def _said_by_process(request: Json) -> Iterator[Json]:
    """The messages of runtime.measured, as they come."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", measured.__name__]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        with process.stdin as stdin:
            json.dump(request, stdin)
        yield from (json.loads(line) for line in process.stdout)
