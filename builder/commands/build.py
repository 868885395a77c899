"""`build`: bring recipes up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from builder import imported, sources
from builder.arguments import Arguments
from builder.commands.jobs import Job, decided, folders_of, job_of, merge
from builder.compose import Composed
from builder.core.errors import BuildError
from builder.core.examine import examine
from builder.core.plan import Plan
from builder.core.run import Outcome
from builder.preflight import check_checkpoint, check_folder, refused
from builder.recipe import Recipe
from builder.report import document
from builder.report.words import size
from builder.targets import android, link


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
    from builder.commands.phases import run_phases
    from builder.core.export import export
    from builder.executors import local

    job = downloaded(job)
    for recipe in job.recipes:
        check_folder(job.outputs[recipe.name])
    if errors := early_errors(job):
        return Result(refused(job.plan, errors), job)
    options = arguments.options
    with (
        listener(stream, options.quiet) as listen,
        local.LocalExecutor(job.store, local.capacity(options.jobs)) as pool,
    ):
        outcome, job = run_phases(job, pool, listen, options.keep_going)
    for goal, recipe in zip(job.plan.goals, job.recipes, strict=True):
        if outcome.goal(goal.name) != "failed":
            folder = job.outputs[goal.name]
            export(outcome, goal.name, job.store, folder, described(recipe))
    return Result(outcome, job)


def early_errors(job: Job) -> dict[str, BuildError]:
    """What cannot work, known before any step runs, by step id: bad checkpoints, tools that are missing."""
    first = {id_: step for id_, step in job.plan.steps.items() if not step.inputs}
    verdicts = examine(Plan(first, ()), job.store)
    errors: dict[str, BuildError] = {}
    for goal, recipe in zip(job.plan.goals, job.recipes, strict=True):
        ids = {job.plan.steps[id_].name: id_ for id_ in goal.steps}
        for name, check in checks_of(recipe).items():
            id_ = ids.get(name, goal.steps[-1])  # lower is not planned before the rules of a budget are
            if id_ not in verdicts or verdicts[id_].status != "hit":
                try:
                    check()
                except BuildError as error:
                    errors[id_] = error
    return errors


def checks_of(recipe: Recipe) -> dict[str, Callable[[], object]]:
    """What a step without inputs needs, by its name."""
    checks: dict[str, Callable[[], object]] = {"fetch": partial(check_checkpoint, recipe)}
    if recipe.target.library == "so":
        linker = partial(link.require_linker, recipe.target.triple)
        checks["lower"] = android.find_clang if recipe.target.kind == "opencl" else linker
    return checks


def downloaded(job: Job) -> Job:
    """The job with every hf:// checkpoint complete on this disk."""
    if not any(recipe.checkpoint.missing for recipe in job.recipes):
        return job
    from builder import graph

    recipes = tuple(imported.settled(replace(r, checkpoint=sources.complete(r.checkpoint))) for r in job.recipes)
    return decided(replace(job, recipes=recipes, plan=graph.build_plan(recipes)))


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
    job = result.job
    whole = document.with_refused(document.built(result.outcome, job.outputs), job.refused, job.outputs)
    if arguments.options.json:
        json.dump(whole, sys.stdout, indent=1)
        print()
    else:
        for recipe in whole["recipes"]:
            print_recipe(recipe, sys.stdout, arguments.options.quiet)
    print_failures(result.outcome, arguments.options.debug)
    return result.outcome.exit_code or refused_code(arguments, job)


def refused_code(arguments: Arguments, job: Job) -> int:
    """2 when a cell of a sweep was refused, unless that was expected: who asked for twenty folders must hear of 19."""
    return 2 if job.refused and not arguments.options.allow_unsupported else 0


def print_recipe(recipe: dict[str, Any], stream: TextIO, quiet: bool) -> None:
    ran = [s for s in recipe["steps"] if s["status"] != "hit"]
    if ran and stream.isatty() and not quiet:
        from builder.report.table import print_steps

        print_steps(recipe, stream)
    folder = Path(recipe["output"])
    if recipe["status"] == "unsupported":
        print_unsupported(recipe, stream)
        return
    if recipe["status"] == "failed":
        bad = [s["name"] for s in recipe["steps"] if s["status"] == "failed"]
        print(f"{recipe['name']}: failed in {', '.join(bad) or 'an earlier step'}", file=stream)
        return
    checks = ("verify", "verify.weights")
    facts = {k: v for s in recipe["steps"] if s["name"] in checks for k, v in s.get("facts", {}).items()}
    said = ""
    if facts:
        was, kl = facts["perplexity_original"], facts["kl"]
        whose = f"built, not run here ({facts['not_run']}); its weights: " if "not_run" in facts else ""
        said = f"; {whose}perplexity {facts['perplexity']:.2f} (original {was:.2f}), KL {kl:.4f}"
    for allocate in (step for step in ran if step["name"] == "allocate"):
        print_rules(allocate["facts"], stream)
    nbytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    steps = f"{len(ran)} of {len(recipe['steps'])} steps ran" if ran else f"all {len(recipe['steps'])} steps fresh"
    print(f"{recipe['name']}: up to date ({steps}) in {relative(folder)}, {size(nbytes)}{said}", file=stream)


def print_rules(found: dict[str, Any], stream: TextIO) -> None:
    """What a budget picked, as a recipe would write it."""
    each = ", ".join(f"{pattern} {bits:.2f}" for pattern, bits in found["bits_of"].items())
    print(f"bits per weight: {found['bits_per_weight']:.2f} in all; {each}", file=stream)
    print("rules:", file=stream)
    for rule in found["rules"]:
        print("  - " + json.dumps(rule).replace('"', ""), file=stream)


def print_unsupported(recipe: dict[str, Any], stream: TextIO) -> None:
    print(f"{recipe['name']}: unsupported: {recipe['reason']}", file=stream)
    if recipe["hint"]:
        print(f"  next: {recipe['hint']}", file=stream)


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
