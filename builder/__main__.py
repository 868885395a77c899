"""The `build` command. Nothing heavy is imported before it is known to be needed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_build.cli.arguments import Arguments
    from llm_build.core.errors import BuildError

_SYSTEMS = ("linux", "darwin")  # as core/system.py has them, which cannot be imported elsewhere

_CLOSED_PIPE = 141  # as a shell says of a program that SIGPIPE ended


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 for a failed step, 2 for a user's mistake, 130 for Ctrl-C,
    141 where what it printed goes into a closed pipe."""
    if sys.platform not in _SYSTEMS:
        print(
            f"error: llm-build runs on Linux and on macOS; this Python is for {sys.platform}\n"
            "  next: on Windows, install it inside WSL 2 (https://learn.microsoft.com/windows/wsl/install)",
            file=sys.stderr,
        )
        return 2
    words = list(sys.argv[1:] if argv is None else argv)
    _print_anything()
    try:
        code = _end_of(words)
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()  # a pipe that was closed is found out here, not at the end of the interpreter
    except BrokenPipeError:
        _write_nowhere()
        return _CLOSED_PIPE
    return code


def _end_of(words: Sequence[str]) -> int:
    """The exit code of a command, whose errors are told. Raises BrokenPipeError where nobody reads them."""
    from llm_build.cli.arguments import parse
    from llm_build.core.errors import BuildError

    debug = "--debug" in words
    try:
        return run(parse(words))
    except BuildError as error:
        if debug:
            raise
        return refuse(error, "--json" in words)
    except KeyboardInterrupt:
        if debug:
            raise
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except Exception as error:
        if debug:
            raise
        message = f"error: a defect in llm-build: {type(error).__name__}: {error}"
        print(f"{message}\n  next: the same command with --debug shows where; please report it", file=sys.stderr)
        return 1


def _print_anything() -> None:
    """Characters that standard output cannot write, of names in files of others, are escaped, as on standard error."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def _write_nowhere() -> None:
    """What is still in the buffers of the standard streams goes nowhere, quietly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in filter(None, (sys.stdout, sys.stderr)):
        os.dup2(nowhere, stream.fileno())


def run(arguments: Arguments) -> int:
    """Hands over to the module of llm_build.cli that has the command's name: no other is imported."""
    options, name = arguments.options, arguments.command.replace("-", "_")
    if options.version:
        name = "version"
    elif options.shell_completion:
        name = "completion"
    elif options.cfg or options.info or options.hydra_help:
        name = "hydra"
    code: int = import_module(f"llm_build.cli.{name}").show(arguments)
    return code


def refuse(error: BuildError, as_json: bool) -> int:
    """An error for people on stderr, for programs on stdout."""
    if as_json:
        from llm_build.report.document import refused

        json.dump(refused(error), sys.stdout, indent=1)
        print()
    from llm_build.report.text import wrap_text

    print(wrap_text(f"error: {error.message}", sys.stderr), file=sys.stderr)
    if error.hint:
        print(f"  next: {error.hint}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
