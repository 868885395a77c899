"""Bring recipes up to date: run what is stale, then put each result in its folder."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from llm_build.app.buildable import with_decided_budgets
from llm_build.app.holder import check_not_of_another, remember_source
from llm_build.app.options import BuildOptions
from llm_build.app.phases import run_phases, without_goals
from llm_build.app.places import examine_stores
from llm_build.app.request import BuildRequest
from llm_build.app.session import Session
from llm_build.config.schema import Checkpoint, Recipe, recipe_document
from llm_build.core.errors import BuildError
from llm_build.core.events import Listener, Warned
from llm_build.core.filestore import FileStore
from llm_build.core.plan import Plan
from llm_build.core.record import Record
from llm_build.core.run import Outcome
from llm_build.core.step import Step
from llm_build.planner import sources
from llm_build.planner.feasibility.preflight import check_checkpoint, check_folder, refused_outcome
from llm_build.planner.graph import graph
from llm_build.planner.schemes import imported
from llm_build.targets import android, link

_Check = tuple[Callable[[Step], bool], Callable[[], object]]  # which step it concerns, what raises when it cannot work


@dataclass(frozen=True, slots=True)
class BuildResult:
    """``request``: with the checkpoints that were downloaded and the rules that were picked. ``seconds``: from
    the start to the last file."""

    outcome: Outcome
    request: BuildRequest
    seconds: float = 0.0


def bring_up_to_date(options: BuildOptions, request: BuildRequest, session: Session) -> BuildResult:
    """Runs what is stale, then puts the results of every good recipe in its folder.

    Raises UserError for what does not match the lock (options.locked), for a folder that cannot be written, and for a
    key that cannot sign, before any step runs."""
    began, lock = time.monotonic(), None
    if options.locked:
        from llm_build.app.lock_check import require_match

        lock = require_match(options, request)
    request, errors = _download_checkpoints(request, options.keep_going)
    for recipe in request.recipes:
        check_folder(request.outputs[recipe.name])
        check_not_of_another(recipe, request)
    if request.key:
        from llm_build.provenance.signing import key_id

        key_id(request.key, request.store)  # a key that cannot sign is refused before any work
    errors = {**_early_errors(request), **errors}
    if lock and not errors:
        lock.check_read(options, request, session)
    if not errors:
        outcome, request = _run(options, request, session)
    elif options.keep_going:
        outcome, request = without_goals(request, errors, lambda good: _run(options, good, session))
    else:
        return BuildResult(refused_outcome(request.plan, errors), request, time.monotonic() - began)
    if lock:
        lock.check_built(request)
    export_good(outcome, request, session.warn)
    return BuildResult(outcome, request, time.monotonic() - began)


def _run(options: BuildOptions, request: BuildRequest, session: Session) -> tuple[Outcome, BuildRequest]:
    """Runs what is stale, before the eyes of whoever listens."""
    matrix = None
    if request.is_sweep:
        from llm_build.app import cells

        matrix = cells.waiting(request)
    with session.listen(matrix) as listen, session.executor(request) as pool:
        done = run_phases(request, pool, listen, options.keep_going)
        request.store.drain(listen)
        return done


def export_good(outcome: Outcome, request: BuildRequest, warn: Listener) -> None:
    """Put the results of every recipe that did not fail in its folder; a shared store hears of those that are new."""
    from llm_build.app.export import export

    built: dict[str, Record] = {}
    for goal, recipe in zip(request.plan.goals, request.recipes, strict=True):
        if outcome.goal(goal.name) == "failed":
            continue
        folder = request.outputs[goal.name]
        exported = export(outcome, goal.name, request.store, folder, {**recipe_document(recipe), "label": recipe.label})
        remember_source(recipe, folder, request.store)
        for name in exported.edited:
            what = f"{folder / name} had been changed by hand: put back as it was built"
            warn(Warned("", "", what))
        if request.key or exported.changed:
            from llm_build.provenance.signing import keep_signed

            keep_signed(folder, request.key, request.store)
        if exported.changed and outcome.goal(goal.name) == "ran":
            built[goal.name] = outcome.records[goal.artifact]
    if built and type(request.store) is not FileStore:
        from llm_build.app.share import publish_if_allowed

        publish_if_allowed(request, built, warn)


def _early_errors(request: BuildRequest) -> dict[str, BuildError]:
    """What cannot work, known before any step runs, by step id: bad checkpoints, tools that are missing."""
    first = {id_: step for id_, step in request.plan.steps.items() if not step.inputs}
    verdicts = examine_stores(Plan(first, ()), request.store)
    errors: dict[str, BuildError] = {}
    for goal, recipe in zip(request.plan.goals, request.recipes, strict=True):
        steps = [request.plan.steps[id_] for id_ in goal.steps]
        for concerned, check in _checks_of(recipe):
            id_ = next((step.id for step in steps if concerned(step)), goal.steps[-1])  # or it is not planned yet
            if id_ not in verdicts or verdicts[id_].status != "fresh":
                try:
                    check()
                except BuildError as error:
                    errors[id_] = error
    return errors


def _checks_of(recipe: Recipe) -> list[_Check]:
    """What the steps without inputs need."""
    checks: list[_Check] = [(lambda step: step.role == "source", partial(check_checkpoint, recipe))]
    if recipe.target.library == "so":
        linker = partial(link.require_linker, recipe.target.triple)
        check = android.find_clang if recipe.target.kind == "opencl" else linker
        checks.append((lambda step: bool({"linker", "ndk"} & set(step.programs)), check))
    return checks


def _download_checkpoints(request: BuildRequest, keep_going: bool) -> tuple[BuildRequest, dict[str, BuildError]]:
    """The request with every hf:// checkpoint complete on this disk. With ``keep_going`` a download that fails is an
    error of the step that would fetch it, by id; it is raised otherwise."""
    if not any(recipe.checkpoint.missing for recipe in request.recipes):
        return request, {}
    errors: dict[str, BuildError] = {}
    complete: dict[str, Checkpoint] = {}
    recipes = []
    for goal, recipe in zip(request.plan.goals, request.recipes, strict=True):
        checkpoint, resolved = recipe.checkpoint, recipe
        fetch = next(id_ for id_ in goal.steps if request.plan.steps[id_].role == "source")
        try:
            if checkpoint.missing and fetch not in errors:
                complete[checkpoint.uri] = complete.get(checkpoint.uri) or sources.download_missing(checkpoint)
                resolved = imported.with_scheme_of_headers(replace(recipe, checkpoint=complete[checkpoint.uri]))
        except BuildError as error:
            if not keep_going:
                raise
            errors[fetch] = error
        recipes.append(resolved)
    plan = graph.build_plan(recipes)
    return with_decided_budgets(replace(request, recipes=tuple(recipes), plan=plan)), errors
