"""Compile one recipe's library once more, and write down what each pass and each kernel became."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from llm_build.app.request import UNDECIDED, BuildRequest
from llm_build.core.errors import UserError
from llm_build.core.step import Step
from llm_build.report.operators import describe_kernels

_DUMP = "llm_build.steps.dump"  # loaded by name, as steps are: it brings the compiler


def dump_lowering(
    request: BuildRequest, folder: Path, progress: Callable[[int, int, str], None] = lambda *_: None
) -> None:
    """Write the lowering of a request of one recipe to ``folder``: docs/how-it-works/lowering.md says what is in it.

    The store is neither read nor written: the library is compiled anew and is the same as a build's. ``progress`` hears
    stages done, stages in all and the one that starts.

    Raises:
        UserError: several recipes were asked for, the rules of a budget are not decided, or the folder is not empty.
    """
    step = _library_step(request)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not an empty folder", "build lower --dump ANOTHER")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}", "build lower --dump DIR") from error
    import_module(_DUMP).dump_lowering(step.params, folder, progress)
    operators = json.loads((folder / "operators.json").read_text("utf-8"))
    (folder / "operators.txt").write_text("".join(f"{line}\n" for line in describe_kernels(operators)), "utf-8")


def _library_step(request: BuildRequest) -> Step:
    if request.is_sweep:
        raise UserError("a dump is of one recipe, and -m asks for many", "the same with one value of each")
    if request.recipes[0].undecided:
        raise UserError(UNDECIDED, "build")
    return next(step for step in request.plan.steps.values() if step.role == "library")
