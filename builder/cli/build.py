"""`build`: bring recipes up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from builder.app.request import Job, decided, folders_of, is_sweep, job_of, merge, pinned
from builder.app.request import verdicts as verdicts_of
from builder.cli.arguments import Arguments
from builder.config.choices import Composed
from builder.config.paths import store_path
from builder.config.schema import Checkpoint, Recipe, described
from builder.core.errors import BuildError
from builder.core.events import Finished
from builder.core.filestore import FileStore
from builder.core.plan import Plan
from builder.core.record import Record
from builder.core.run import Outcome
from builder.core.step import Step
from builder.core.units import format_bytes
from builder.planner import sources
from builder.planner.feasibility.preflight import check_checkpoint, check_folder, refused
from builder.planner.schemes import imported
from builder.report import document
from builder.report.words import base, folded
from builder.targets import android, link

if TYPE_CHECKING:
    from builder.app.lock_check import Held
    from builder.executors.local import LocalExecutor
    from builder.executors.ray import RayExecutor


Check = tuple[Callable[[Step], bool], Callable[[], object]]  # which step it concerns, what raises when it cannot work


@dataclass(frozen=True, slots=True)
class Result:
    outcome: Outcome
    job: Job


def show(arguments: Arguments) -> int:
    """One recipe, or with -m every combination."""
    if is_sweep(arguments):
        from builder.app.sweep import sweep

        return sweep(arguments, lambda jobs: finish(arguments, run_jobs(arguments, jobs)))
    return finish(arguments, bring_up_to_date(arguments, job_of(arguments), events_to(arguments)))


def run_jobs(arguments: Arguments, jobs: Sequence[Composed]) -> Result:
    job = merge(pinned(arguments, jobs), folders_of(arguments))
    return bring_up_to_date(arguments, job, events_to(arguments))


def events_to(arguments: Arguments) -> TextIO:
    """Events go to standard output, unless that is for a document or for generated text."""
    return sys.stderr if arguments.options.json or arguments.command == "generate" else sys.stdout


def bring_up_to_date(arguments: Arguments, job: Job, stream: TextIO) -> Result:
    """Runs what is stale, then puts the results of every good recipe in its folder."""
    from builder.app.phases import without_goals

    keep_going = arguments.options.keep_going
    held = hold_to_lock(arguments, job)
    job, errors = downloaded(job, keep_going)
    for recipe in job.recipes:
        check_folder(job.outputs[recipe.name])
    if job.key:
        from builder.provenance.signing import key_id

        key_id(job.key, job.store)  # a key that cannot sign is refused before any work
    errors = {**early_errors(job), **errors}
    if held and not errors:
        held.check_read(arguments, job)
    if not errors:
        outcome, job = run_job(arguments, job, stream)
    elif keep_going:
        outcome, job = without_goals(job, errors, lambda good: run_job(arguments, good, stream))
    else:
        return Result(refused(job.plan, errors), job)
    if held:
        held.check_built(job)
    export_good(outcome, job)
    return Result(outcome, job)


def export_good(outcome: Outcome, job: Job) -> None:
    """Put the results of every recipe that did not fail in its folder; a shared store hears of those that are new."""
    from builder.app.export import export

    built: dict[str, Record] = {}
    for goal, recipe in zip(job.plan.goals, job.recipes, strict=True):
        if outcome.goal(goal.name) == "failed":
            continue
        folder = job.outputs[goal.name]
        exported = export(outcome, goal.name, job.store, folder, described(recipe))
        if job.key or exported.changed:
            from builder.provenance.signing import keep_signed

            keep_signed(folder, job.key, job.store)
        if exported.changed and outcome.goal(goal.name) == "built":
            built[goal.name] = outcome.records[goal.artifact]
    if built and type(job.store) is not FileStore:
        from builder.app.share import announce

        announce(job, built)


def run_job(arguments: Arguments, job: Job, stream: TextIO) -> tuple[Outcome, Job]:
    """Runs what is stale, before the eyes of whoever looks at ``stream``."""
    from builder.app.phases import run_phases

    options = arguments.options
    with (
        listener(stream, options.quiet, waiting(job)) as listen,
        pool_of(job, options.jobs) as pool,
    ):
        done = run_phases(job, pool, listen, options.keep_going)
        job.store.drain(listen)
        return done


def pool_of(job: Job, jobs: int) -> LocalExecutor | RayExecutor:
    """What runs the steps; it reaches no cluster before one is stale."""
    if job.executor.kind == "ray":
        from builder.executors.ray import RayExecutor

        return RayExecutor(job.store, job.executor.address, store_path, jobs)
    from builder.executors import local

    return local.LocalExecutor(job.store, local.capacity(jobs))


def hold_to_lock(arguments: Arguments, job: Job) -> Held | None:
    """The lock of --locked; UserError when the job does not match it."""
    if not arguments.options.locked:
        return None
    from builder.app.lock_check import hold

    return hold(arguments, job)


def early_errors(job: Job) -> dict[str, BuildError]:
    """What cannot work, known before any step runs, by step id: bad checkpoints, tools that are missing."""
    first = {id_: step for id_, step in job.plan.steps.items() if not step.inputs}
    verdicts = verdicts_of(Plan(first, ()), job.store)
    errors: dict[str, BuildError] = {}
    for goal, recipe in zip(job.plan.goals, job.recipes, strict=True):
        steps = [job.plan.steps[id_] for id_ in goal.steps]
        for concerned, check in checks_of(recipe):
            id_ = next((step.id for step in steps if concerned(step)), goal.steps[-1])  # or it is not planned yet
            if id_ not in verdicts or verdicts[id_].status != "hit":
                try:
                    check()
                except BuildError as error:
                    errors[id_] = error
    return errors


def checks_of(recipe: Recipe) -> list[Check]:
    """What the steps without inputs need."""
    checks: list[Check] = [(lambda step: step.role == "source", partial(check_checkpoint, recipe))]
    if recipe.target.library == "so":
        linker = partial(link.require_linker, recipe.target.triple)
        check = android.find_clang if recipe.target.kind == "opencl" else linker
        checks.append((lambda step: bool({"linker", "ndk"} & set(step.programs)), check))
    return checks


def downloaded(job: Job, keep_going: bool) -> tuple[Job, dict[str, BuildError]]:
    """The job with every hf:// checkpoint complete on this disk. With ``keep_going`` a download that fails is an error
    of the step that would fetch it, by id; it is raised otherwise."""
    if not any(recipe.checkpoint.missing for recipe in job.recipes):
        return job, {}
    from builder.planner.graph import graph

    errors: dict[str, BuildError] = {}
    here: dict[str, Checkpoint] = {}
    recipes = []
    for goal, recipe in zip(job.plan.goals, job.recipes, strict=True):
        found, whole = recipe.checkpoint, recipe
        fetch = next(id_ for id_ in goal.steps if job.plan.steps[id_].role == "source")
        try:
            if found.missing and fetch not in errors:
                here[found.uri] = here.get(found.uri) or sources.complete(found)
                whole = imported.settled(replace(recipe, checkpoint=here[found.uri]))
        except BuildError as error:
            if not keep_going:
                raise
            errors[fetch] = error
        recipes.append(whole)
    return decided(replace(job, recipes=tuple(recipes), plan=graph.build_plan(recipes))), errors


def waiting(job: Job) -> Any:
    """The matrix of a sweep before it starts, None for a plain build."""
    if len(job.names) == 1:
        return None
    from builder.app import cells

    return cells.waiting(job)


def listener(stream: TextIO, quiet: bool, matrix: Any = None) -> Any:
    """``matrix``: that of the sweep to be watched, if it is one."""
    if stream.isatty() and not quiet:
        from builder.report.live import Live

        return Live(stream, matrix)
    from builder.report.lines import Lines

    return Lines(stream, quiet, matrix)


def finish(arguments: Arguments, result: Result) -> int:
    """The result as a document or as text; returns the exit code."""
    job = result.job
    whole = document.with_refused(document.built(result.outcome, job.outputs), job.refused, job.outputs)
    if len(job.names) > 1:
        from builder.app import cells

        matrix = cells.built(job, result.outcome)
        if arguments.options.json:
            whole["matrix"] = cells.document(matrix)
        else:
            cells.print_sweep(matrix, job, result.outcome, sys.stdout)
    elif not arguments.options.json:
        for recipe in whole["recipes"]:
            print_recipe(recipe, sys.stdout, arguments.options.quiet)
    if arguments.options.json:
        json.dump(whole, sys.stdout, indent=1)
        print()
    print_failures(job, result.outcome, arguments.options.debug)
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
    facts = {k: v for s in recipe["steps"] if s["validation"] for k, v in s.get("facts", {}).items()}
    said = ""
    if facts:
        was, kl = facts["perplexity_original"], facts["kl"]
        whose = f"built, not run here ({facts['not_run']}); its weights: " if "not_run" in facts else ""
        said = f"; {whose}perplexity {facts['perplexity']:.2f} (original {was:.2f}), KL {kl:.4f}"
    for decision in (step for step in ran if step["role"] == "decision"):
        print_rules(decision["facts"], stream)
    nbytes = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    steps = f"{len(ran)} of {len(recipe['steps'])} steps ran" if ran else f"all {len(recipe['steps'])} steps fresh"
    line = f"{recipe['name']}: up to date ({steps}) in {relative(folder)}, {format_bytes(nbytes)}{said}"
    print(folded(line, stream), file=stream)


def print_rules(found: dict[str, Any], stream: TextIO) -> None:
    """What a budget picked, as a recipe would write it."""
    each = ", ".join(f"{pattern} {bits:.2f}" for pattern, bits in found["bits_of"].items())
    print(f"bits per weight: {found['bits_per_weight']:.2f} in all; {each}", file=stream)
    print("rules:", file=stream)
    for rule in found["rules"]:
        print("  - " + json.dumps(rule).replace('"', ""), file=stream)


def print_unsupported(recipe: dict[str, Any], stream: TextIO) -> None:
    print(folded(f"{recipe['name']}: unsupported: {recipe['reason']}", stream), file=stream)
    if recipe["hint"]:
        print(f"  next: {recipe['hint']}", file=stream)


def relative(folder: Path) -> str:
    here = Path.cwd()
    return f"{folder.relative_to(here)}/" if folder.is_relative_to(here) else f"{folder}/"


def print_failures(job: Job, outcome: Outcome, debug: bool) -> None:
    """Each failure once, with its cause, the cells of a sweep that it concerns and the way out; tracebacks only for
    --debug."""
    causes: dict[tuple[str, str], list[Finished]] = {}
    for step in outcome.steps.values():
        if step.error is not None:
            causes.setdefault((base(step.name), step.error.message), []).append(step)
    for steps in causes.values():
        name, error = steps[0].name, steps[0].error
        assert error is not None
        message, trace, _ = error.message.partition("\n    Traceback")
        print(folded(f"error: {name}: {error.message if debug else message}", sys.stderr), file=sys.stderr)
        if len(job.names) > 1:
            from builder.app.cells import told, wanting

            print(f"  cells: {told(job.axes, wanting(job, outcome, steps))}", file=sys.stderr)
        hint = error.hint or ("the same command with --debug shows where; please report it" if trace else "")
        if hint:
            print(f"  next: {hint}", file=sys.stderr)
