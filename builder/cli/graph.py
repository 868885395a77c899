"""`build graph`: the steps as text here, as Mermaid and SVG in files."""

from __future__ import annotations

import sys
from pathlib import Path

from llm_build.app.plan import step_statuses
from llm_build.app.request import UNDECIDED, BuildRequest
from llm_build.cli.arguments import Arguments
from llm_build.cli.session import for_each_request
from llm_build.core.errors import StepError, UserError
from llm_build.report import draw


def show(arguments: Arguments) -> int:
    return for_each_request(arguments, _print_graph)


def _print_graph(arguments: Arguments, request: BuildRequest) -> int:
    """Colours and words show what is fresh. Raises UserError when the files cannot be written."""
    status = step_statuses(request)
    print(draw.text(request.plan, status))
    if any(recipe.undecided for recipe in request.recipes):
        print(UNDECIDED)
    name = request.recipes[0].name if len(request.recipes) == 1 else "sweep"
    folder = Path(arguments.options.out or request.dist)
    files = {f"{name}.mmd": draw.mermaid(request.plan, status), f"{name}.svg": draw.svg(request.plan, status)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / file).write_text(content, encoding="utf-8")
            print(f"wrote {folder / file}", file=sys.stderr)
    except PermissionError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}", "build graph --out DIR") from error
    except OSError as error:
        raise StepError(f"{folder}: {error.strerror}") from error
    return 0
