"""The `build` command. Nothing heavy is imported before it is known to be needed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

from builder.arguments import Arguments, parse
from builder.core.errors import BuildError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 for a failed step, 2 for a user's mistake, 130 for Ctrl-C."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    try:
        return run(parse(given))
    except BuildError as error:
        if debug:
            raise
        return refuse(error, "--json" in given)
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
        said = f"error: a defect in llm-build: {type(error).__name__}: {error}"
        print(f"{said}\n  next: the same command with --debug shows where; please report it", file=sys.stderr)
        return 1


def run(arguments: Arguments) -> int:
    options = arguments.options
    if options.help:
        from builder.commands.help import show
    elif options.version:
        from builder.commands.version import show
    elif options.cfg or options.info or options.hydra_help or options.shell_completion:
        from builder.commands.hydra import show
    else:
        show = command(arguments.command)
    return show(arguments)


def command(name: str):  # type: ignore[no-untyped-def]
    """The function of a command; an explicit table, imported one by one."""
    match name:
        case "build":
            from builder.commands.build import show
        case "plan":
            from builder.commands.plan import show
        case "why":
            from builder.commands.why import show
        case "graph":
            from builder.commands.graph import show
        case "generate":
            from builder.commands.generate import show
        case "bench":
            from builder.commands.bench import show
        case "gc":
            from builder.commands.gc import show
        case "doctor":
            from builder.commands.doctor import show
        case _:
            from builder.commands.list import show
    return show


def refuse(error: BuildError, as_json: bool) -> int:
    """An error for people on stderr, for programs on stdout."""
    if as_json:
        from builder.report.document import refused

        json.dump(refused(error), sys.stdout, indent=1)
        print()
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"  next: {error.hint}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
