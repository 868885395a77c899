"""`build`: bring recipes up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from builder import sources
from builder.arguments import Arguments
from builder.commands.jobs import Job, folders_of, job_of, merge
from builder.compose import Composed
from builder.core.errors import BuildError
from builder.core.examine import examine
from builder.core.plan import Plan
from builder.core.run import Outcome
from builder.preflight import check_checkpoint, check_folder, refused
from builder.recipe import Recipe
from builder.report import document
from builder.report.words import size
from builder.targets import link


@dataclass(frozen=True, slots=True)
class Result:
    outcome: Outcome
    job: Job


def show(arguments: Arguments) -> int:
    """One recipe, or with -m every combination."""
    if arguments.options.multirun:
        from builder.commands.hydra import sweep

        return sweep(arguments, lambda jobs: finish(arguments, run_jobs(arguments, jobs)))
    return finish(arguments, bring_up_to_date(arguments, job_of(arguments), events_to(arguments)))


def run_jobs(arguments: Arguments, jobs: Sequence[Composed]) -> Result:
    return bring_up_to_date(arguments, merge(jobs, folders_of(arguments)), events_to(arguments))


def events_to(arguments: Arguments) -> TextIO:
    """Events go to standard output, unless that is for a document or for generated text."""
    return sys.stderr if arguments.options.json or arguments.command == "generate" else sys.stdout


def bring_up_to_date(arguments: Arguments, job: Job, stream: TextIO) -> Result:
    """Runs what is stale, then puts the results of every good recipe in its folder."""
    from builder.core.export import export
    from builder.core.run import run
    from builder.executors import local

    job = downloaded(job)
    for folder in job.outputs.values():
        check_folder(folder)
    if errors := early_errors(job):
        return Result(refused(job.plan, errors), job)
    options = arguments.options
    with (
        listener(stream, options.quiet) as listen,
        local.LocalExecutor(job.store, local.capacity(options.jobs)) as pool,
    ):
        outcome = run(job.plan, job.store, pool, listen, options.keep_going)
    for goal, recipe in zip(job.plan.goals, job.recipes, strict=True):
        if outcome.goal(goal.name) != "failed":
            folder = job.outputs[goal.name]
            export(outcome, goal.name, job.store, folder, described(recipe))
    return Result(outcome, job)


def early_errors(job: Job) -> dict[str, BuildError]:
    """What cannot work, known before any step runs, by step id: bad checkpoints, no linker."""
    first = {
        id_: step for id_, step in job.plan.steps.items() if step.name in ("fetch", "lower")
    }  # they have no inputs
    verdicts = examine(Plan(first, ()), job.store)
    errors: dict[str, BuildError] = {}
    for goal, recipe in zip(job.plan.goals, job.recipes, strict=True):
        ids = {job.plan.steps[id_].name: id_ for id_ in goal.steps}
        checks: dict[str, Callable[[], object]] = {
            "fetch": partial(check_checkpoint, recipe),
            "lower": link.require_linker,
        }
        for name, check in checks.items():
            if verdicts[ids[name]].status != "hit":
                try:
                    check()
                except BuildError as error:
                    errors[ids[name]] = error
    return errors


def downloaded(job: Job) -> Job:
    """The job with every hf:// checkpoint complete on this disk."""
    if not any(recipe.checkpoint.missing for recipe in job.recipes):
        return job
    from builder import graph

    recipes = tuple(replace(r, checkpoint=sources.complete(r.checkpoint)) for r in job.recipes)
    return replace(job, recipes=recipes, plan=graph.build_plan(recipes))


def described(recipe: Recipe) -> dict[str, Any]:
    """What build.json says was asked for: no path of this machine, so that two folders give the same bytes."""
    from dataclasses import asdict

    model = {**asdict(recipe.model), "source": recipe.checkpoint.uri or "folder"}
    verify = {k: v for k, v in asdict(recipe.verify).items() if k != "text"}
    return {
        "name": recipe.name,
        "choices": dict(recipe.choices),
        "model": model,
        "quant": asdict(recipe.quant),
        "target": asdict(recipe.target),
        "metadata": asdict(recipe.metadata),
        "architecture": dict(recipe.architecture),
        "verify": verify,
        "pins": asdict(recipe.pins),
    }


def listener(stream: TextIO, quiet: bool) -> Any:
    if stream.isatty() and not quiet:
        from builder.report.live import Live

        return Live(stream)
    from builder.report.lines import Lines

    return Lines(stream, quiet)


def finish(arguments: Arguments, result: Result) -> int:
    """The result as a document or as text; returns the exit code."""
    whole = document.built(result.outcome, result.job.outputs)
    if arguments.options.json:
        json.dump(whole, sys.stdout, indent=1)
        print()
    else:
        for recipe in whole["recipes"]:
            print_recipe(recipe, sys.stdout, arguments.options.quiet)
    print_failures(result.outcome, arguments.options.debug)
    return result.outcome.exit_code


def print_recipe(recipe: dict[str, Any], stream: TextIO, quiet: bool) -> None:
    ran = [s for s in recipe["steps"] if s["status"] != "hit"]
    if ran and stream.isatty() and not quiet:
        from builder.report.table import print_steps

        print_steps(recipe, stream)
    folder = Path(recipe["output"])
    if recipe["status"] == "failed":
        bad = [s["name"] for s in recipe["steps"] if s["status"] == "failed"]
        print(f"{recipe['name']}: failed in {', '.join(bad) or 'an earlier step'}", file=stream)
        return
    facts = {k: v for s in recipe["steps"] if s["name"] == "verify" for k, v in s.get("facts", {}).items()}
    said = ""
    if facts:
        was, kl = facts["perplexity_original"], facts["kl"]
        said = f"; perplexity {facts['perplexity']:.2f} (original {was:.2f}), KL {kl:.4f}"
    nbytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    steps = f"{len(ran)} of {len(recipe['steps'])} steps ran" if ran else f"all {len(recipe['steps'])} steps fresh"
    print(f"{recipe['name']}: up to date ({steps}) in {relative(folder)}, {size(nbytes)}{said}", file=stream)


def relative(folder: Path) -> str:
    here = Path.cwd()
    return f"{folder.relative_to(here)}/" if folder.is_relative_to(here) else f"{folder}/"


def print_failures(outcome: Outcome, debug: bool) -> None:
    """Each failure once, with its cause and the way out; tracebacks only for --debug."""
    seen: set[str] = set()
    for step in outcome.steps.values():
        error: BuildError | None = step.error
        if error is None or step.key + error.message in seen:
            continue
        seen.add(step.key + error.message)
        message, trace, _ = error.message.partition("\n    Traceback")
        print(f"error: {step.name}: {error.message if debug else message}", file=sys.stderr)
        hint = error.hint or ("the same command with --debug shows where; please report it" if trace else "")
        if hint:
            print(f"  next: {hint}", file=sys.stderr)
