"""The failures of a build, on standard error."""

from __future__ import annotations

import re
import sys

from llm_build.app.request import BuildRequest
from llm_build.core.events import Finished
from llm_build.core.run import Outcome
from llm_build.report.text import template_name, wrap_text

_TRACES = re.compile(r"\n    (?:Traceback|thread '|stack backtrace)")  # of Python, and of Rust
_LINES = 15  # of a step's log


def without_trace(message: str) -> tuple[str, bool]:
    """A message as it is shown without --debug, and whether a traceback was left out."""
    parts = _TRACES.split(message, maxsplit=1)
    lines = parts[0].split("\n")
    kept = lines if len(lines) <= _LINES else [lines[0], "    ...", *lines[2 - _LINES :]]
    return "\n".join(kept), len(parts) > 1


def print_failures(request: BuildRequest, outcome: Outcome, debug: bool) -> None:
    """Each failure once, with its cause, the cells of a sweep that it concerns and the way out; tracebacks only for
    --debug."""
    causes: dict[tuple[str, str], list[Finished]] = {}
    for step in outcome.steps.values():
        if step.error is not None:
            causes.setdefault((template_name(step.name), step.error.message), []).append(step)
    for steps in causes.values():
        name, error = steps[0].name, steps[0].error
        assert error is not None
        message, trace = without_trace(error.message)
        print(wrap_text(f"error: {name}: {error.message if debug else message}", sys.stderr), file=sys.stderr)
        if request.is_sweep:
            from llm_build.app.cells import cells_that_need
            from llm_build.cli.matrix import describe_cells

            cells = describe_cells(request.axes, cells_that_need(request, outcome, steps))
            print(f"  cells: {cells}", file=sys.stderr)
        hint = error.hint or ("the same command with --debug shows where; please report it" if trace else "")
        if hint:
            print(f"  next: {hint}", file=sys.stderr)
