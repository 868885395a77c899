"""`build generate "PROMPT"`: bring the recipe up to date, then stream text from what was built."""

from __future__ import annotations

import json
import sys

from builder.app.request import job_of, runnable
from builder.cli.arguments import Arguments
from builder.cli.build import bring_up_to_date, finish, print_recipe
from builder.config.schema import Recipe
from builder.core.errors import UserError
from builder.report import document

RUNS = ("cpu", "cuda")  # kinds of targets that runtime/device.py knows


def check_runs(recipe: Recipe) -> None:
    """Raises UserError, before anything is built, for what the runtime here does not load."""
    target, package = recipe.choices["target"], recipe.choices["package"]
    if recipe.target.kind not in RUNS:
        way_out = (
            "build package=web_page   and open it in a browser" if recipe.target.kind == "webgpu" else "target=cpu"
        )
        raise UserError(
            f"generate runs libraries of cpu and cuda here; target={target} is of kind {recipe.target.kind}", way_out
        )
    if recipe.package.kind != "mlc":
        raise UserError(
            f"generate reads the folder of package=mlc; this one is {package}", "build generate package=mlc"
        )


def show(arguments: Arguments) -> int:
    """Only the text goes to standard output. Raises UserError for a prompt that the model cannot take."""
    options = arguments.options
    if options.multirun:
        raise UserError("build generate takes one recipe; -m makes many", "build -m ...   then build generate for one")
    job = job_of(arguments)
    for recipe in job.recipes:
        check_runs(recipe)
    result = bring_up_to_date(arguments, runnable(job, "generate runs the library"), sys.stderr)
    if result.outcome.exit_code:
        return finish(arguments, result)
    if not options.json and any(step.status == "ran" for step in result.outcome.steps.values()):
        print_recipe(document.built(result.outcome, result.job.outputs)["recipes"][0], sys.stderr, options.quiet)
    from builder.runtime.engine import Engine
    from builder.runtime.generate import generate

    (folder,) = result.job.outputs.values()
    engine = Engine.from_folder(folder)
    pieces = generate(
        engine, folder / "tokenizer.json", arguments.word, options.max_tokens, options.temperature, options.top_p,
        options.seed,
    )  # fmt: skip
    if options.json:
        whole = document.built(result.outcome, result.job.outputs)
        json.dump({**whole, "prompt": arguments.word, "text": "".join(pieces)}, sys.stdout, indent=1)
        print()
        return 0
    print(arguments.word, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0
