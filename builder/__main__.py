"""The `build` command. Nothing heavy is imported before it is known to be needed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llm_build.cli.arguments import Arguments
    from llm_build.core.errors import BuildError

_SYSTEMS = ("linux", "darwin")  # as core/system.py has them, which cannot be imported elsewhere


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 for a failed step, 2 for a user's mistake, 130 for Ctrl-C."""
    if sys.platform not in _SYSTEMS:
        print(
            f"error: llm-build runs on Linux and on macOS; this Python is for {sys.platform}\n"
            "  next: on Windows, install it inside WSL 2 (https://learn.microsoft.com/windows/wsl/install)",
            file=sys.stderr,
        )
        return 2
    from llm_build.cli.arguments import parse
    from llm_build.core.errors import BuildError

    words = list(sys.argv[1:] if argv is None else argv)
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug:
            raise
        message = f"error: a defect in llm-build: {type(error).__name__}: {error}"
        print(f"{message}\n  next: the same command with --debug shows where; please report it", file=sys.stderr)
        return 1


def run(arguments: Arguments) -> int:
    """Hands over to the module of llm_build.cli that has the command's name: no other is imported."""
    options, name = arguments.options, arguments.command.replace("-", "_")
    if options.version:
        name = "version"
    elif options.cfg or options.info or options.hydra_help or options.shell_completion:
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
