"""`build push`: upload what this machine has of a recipe's results, also when it was there before. Builds nothing."""

from __future__ import annotations

from llm_build.app.push import push
from llm_build.app.request import BuildRequest
from llm_build.cli.arguments import Arguments
from llm_build.cli.output import print_document
from llm_build.cli.session import for_each_request, session_of
from llm_build.core.units import count_of, format_bytes


def show(arguments: Arguments) -> int:
    """1 when some results are not here. Raises BuildError when the shared store is away or refuses."""
    return for_each_request(arguments, _push)


def _push(arguments: Arguments, request: BuildRequest) -> int:
    pushed = push(request, session_of(arguments))
    missing = pushed.missing
    if arguments.options.json:
        print_document({"results": pushed.results, "uploaded_bytes": pushed.uploaded_nbytes, "not_here": missing})
    else:
        uploaded = format_bytes(pushed.uploaded_nbytes)
        print(f"{count_of(pushed.results, 'result')} in {pushed.url}; {uploaded} were uploaded")
        if missing:
            more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            print(f"not built here: {', '.join(missing[:8])}{more}\n  next: build, with the same overrides")
    return 1 if missing else 0
