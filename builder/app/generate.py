"""Bring a recipe up to date and generate text with what was built."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from llm_build.app.build import BuildResult, bring_up_to_date
from llm_build.app.buildable import runnable
from llm_build.app.options import BuildOptions
from llm_build.app.request import BuildRequest
from llm_build.app.session import Session
from llm_build.config.schema import Recipe
from llm_build.core.errors import UserError

_RUNS = ("cpu", "cuda")  # kinds of targets that runtime/device.py knows


class Sampling(NamedTuple):
    """``temperature`` 0: always the likeliest token. ``top_p``: from the likeliest tokens of this share."""

    max_tokens: int = 128
    temperature: float = 0.8
    top_p: float = 0.9
    seed: int = 0


def build_for_generation(options: BuildOptions, request: BuildRequest, session: Session) -> BuildResult:
    """Raises UserError, before anything is built, for what the runtime here does not load."""
    for recipe in request.recipes:
        check_runs(recipe)
    return bring_up_to_date(options, runnable(request, "generate runs the library"), session)


def check_runs(recipe: Recipe) -> None:
    """Raises UserError, before anything is built, for what the runtime here does not load."""
    check_kinds(recipe.target.kind, recipe.choices["target"], recipe.package.kind)


def check_kinds(kind: str, target: str, package: str) -> None:
    """``kind``: of the choice ``target``. Raises UserError for what the runtime here does not load."""
    if kind not in _RUNS:
        hint = "build package=web_page   and open it in a browser" if kind == "webgpu" else "target=cpu"
        raise UserError(f"generate runs libraries of cpu and cuda here; target={target} is of kind {kind}", hint)
    if package != "mlc":
        raise UserError(
            f"generate reads the folder of package=mlc; this one is {package}", "build generate package=mlc"
        )


def check_library(folder: Path, result: BuildResult) -> None:
    """Raises StepError where the library in the folder is not the one that was built."""
    from llm_build.core.digest import check_code

    (goal,) = result.outcome.plan.goals
    for name, output in result.outcome.records[goal.artifact].outputs.items():
        if name.endswith(".so"):
            check_code(folder / name, output.digest)


def generate_text(folder: Path, prompt: str, sampling: Sampling, chat: bool = False) -> Iterator[str]:
    """Pieces of text as they come: with ``chat`` the answer to a question, else what follows a text. Raises UserError
    for a prompt that the model cannot take."""
    from llm_build.runtime.engine import Engine
    from llm_build.runtime.generate import generate

    return generate(Engine.from_folder(folder), folder / "tokenizer.json", prompt, *sampling, chat=chat)


def answers(folder: Path) -> bool:
    """Whether what was built is a chat model: one with a chat template."""
    from llm_build.runtime.chat import has_chat

    return has_chat(folder)
