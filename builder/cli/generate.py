"""`build generate "PROMPT"`: bring the recipe up to date, then stream text from what was built: a chat model answers,
another one continues the prompt."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from llm_build.app.built_folder import check_built_folder
from llm_build.app.generate import Sampling, answers, build_for_generation, check_library, generate_text
from llm_build.app.merge import request_of
from llm_build.cli.arguments import Arguments
from llm_build.cli.build import print_result
from llm_build.cli.output import print_document, print_recipe
from llm_build.cli.session import session_of
from llm_build.core.errors import UserError
from llm_build.report import document


def show(arguments: Arguments) -> int:
    """Only the text goes to standard output. Raises UserError for a prompt that the model cannot take."""
    options = arguments.options
    if arguments.build.multirun:
        raise UserError("build generate takes one recipe; -m makes many", "build -m ...   then build generate for one")
    sampling = Sampling(options.max_tokens, options.temperature, options.top_p, options.seed)
    if arguments.other:
        folder = Path(arguments.word)
        check_built_folder(folder, arguments.build)
        return _stream(folder, arguments.other, sampling, arguments, {"folder": str(folder)})
    result = build_for_generation(arguments.build, request_of(arguments.build), session_of(arguments))
    if result.outcome.exit_code:
        return print_result(arguments, result)
    rows = document.built(result.outcome, result.request.outputs)
    if not options.json and any(step.status == "ran" for step in result.outcome.steps.values()):
        print_recipe(rows["recipes"][0], sys.stderr, options.quiet, result.seconds)
    (folder,) = result.request.outputs.values()
    check_library(folder, result)
    return _stream(folder, arguments.word, sampling, arguments, rows)


def _stream(folder: Path, prompt: str, sampling: Sampling, arguments: Arguments, rows: dict[str, Any]) -> int:
    """``rows``: what --json says beside the text."""
    chat = not arguments.options.plain and answers(folder)
    pieces = generate_text(folder, prompt, sampling, chat)
    if arguments.options.json:
        print_document({**rows, "prompt": prompt, "text": "".join(pieces)})
        return 0
    if not chat:
        print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0
