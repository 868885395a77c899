"""What a verb hands to a use case: the requests of its line, who listens, what runs the steps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, TextIO

from llm_build.app.request import BuildRequest
from llm_build.app.session import Session, open_executor
from llm_build.app.sweep import each_request
from llm_build.cli.arguments import Arguments
from llm_build.core.events import Listener
from llm_build.report.lines import Lines

if TYPE_CHECKING:
    from llm_build.report.matrix import Matrix


def for_each_request(arguments: Arguments, handle: Callable[[Arguments, BuildRequest], int]) -> int:
    """Hands the request of the line, or those of its sweep, to a verb. The worst exit code."""
    return each_request(arguments.build, partial(_handle, arguments, handle))


def _handle(arguments: Arguments, handle: Callable[[Arguments, BuildRequest], int], request: BuildRequest) -> int:
    _print_notes(request)
    return handle(arguments, request)


def _print_notes(request: BuildRequest) -> None:
    for note in request.notes:
        print(note, file=sys.stderr)


def session_of(arguments: Arguments) -> Session:
    """Events go to standard output, unless that is for a document or for generated text."""
    stream = sys.stderr if arguments.options.json or arguments.command == "generate" else sys.stdout
    return Session(
        partial(_open_listener, stream, arguments.options.quiet),
        partial(open_executor, jobs=arguments.build.jobs),
        Lines(sys.stderr, quiet=True),
    )


def _open_listener(stream: TextIO, quiet: bool, matrix: Matrix | None) -> AbstractContextManager[Listener]:
    """``matrix``: that of the sweep to be watched, if it is one."""
    if stream.isatty() and not quiet:
        from llm_build.report.live import Live

        return Live(stream, matrix)
    return Lines(stream, quiet, matrix)
