"""What every command starts from: the recipes that were asked for, their plan, the store."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from builder.cli.arguments import Arguments
from builder.config import compose
from builder.config.axes import Axes, axes_of
from builder.config.choices import CHOICE, Composed, Folders, find_folders
from builder.config.paths import store_path
from builder.config.schema import LOCAL, Executor, Recipe
from builder.core.errors import BuildError, StepError, Unsupported
from builder.core.examine import Verdict, examine
from builder.core.filestore import FileStore
from builder.core.plan import Goal, Plan
from builder.planner import resolve
from builder.planner.cell_memo import Once
from builder.planner.feasibility import platforms
from builder.planner.graph import graph

UNDECIDED = "the steps after allocate can be planned when it has picked the rules of quant.budget: build"


@dataclass(frozen=True)
class Job:
    """What is to be built and where: the recipes of one command, merged into one plan.

    ``refused``: cells of a sweep that cannot be built, by name. ``names``: all cells, in the order of the sweep.
    ``axes``: what differs between them. ``excluded``: what sweep.exclude left out; no cell. ``key``: signs build.json.
    """

    recipes: tuple[Recipe, ...]
    plan: Plan
    store: FileStore
    dist: Path
    names: tuple[str, ...]
    refused: Mapping[str, BuildError] = field(default_factory=dict)
    axes: Axes = field(default_factory=Axes)
    excluded: Sequence[object] = ()
    key: Path | None = None
    executor: Executor = LOCAL

    @cached_property
    def outputs(self) -> dict[str, Path]:
        return {name: self.dist / name for name in self.names}


def composition_cache() -> Path:
    return store_path() / "cache" / "compose"


def folders_of(arguments: Arguments) -> Folders:
    return find_folders(arguments.options.config_dir)


def job_of(arguments: Arguments) -> Job:
    """The job of a plain command line: one recipe."""
    composed = compose.compose(arguments.overrides, composition_cache(), arguments.options.config_dir)
    return merge(pinned(arguments, [composed]), folders_of(arguments))


def is_sweep(arguments: Arguments) -> bool:
    """-m, or a recipe that says itself what is swept (hydra.sweeper.params)."""
    if arguments.options.multirun or not any(o.startswith("recipe=") for o in arguments.overrides):
        return bool(arguments.options.multirun)
    return compose.compose(arguments.overrides, composition_cache(), arguments.options.config_dir).sweeps


def pinned(arguments: Arguments, jobs: Sequence[Composed]) -> Sequence[Composed]:
    """The jobs; where a lock holds for them their hf:// sources are at the revision that it has."""
    if not arguments.options.locked and not arguments.options.check:
        return jobs
    from builder.app.lock_check import at_locked_revision

    return at_locked_revision(arguments, jobs)


def merge(jobs: Sequence[Composed], folders: Folders) -> Job:
    """Many composed jobs as one. The store and dist folder are those of the first.

    A cell of a sweep that is Unsupported is kept as such; that of a plain build is raised.
    """
    recipes, refused, names = [], dict[str, BuildError](), []
    jobs, excluded = thinned(jobs, folders) if len(jobs) > 1 else (jobs, ())
    once = Once()
    for composed in distinct(jobs):
        names.append(resolve.name_of(composed))
        try:
            recipes.append(resolve.resolve(composed, folders, once))
        except Unsupported as error:
            if len(jobs) == 1:
                raise
            refused[names[-1]] = error
    check_pins(recipes)
    places = resolve.places(jobs[0])
    plan = graph.build_plan(recipes)
    axes = axes_of(jobs, names)
    job = Job(tuple(recipes), plan, resolve.open_at(places), places.dist, tuple(names), refused, axes, excluded)
    return decided(equipped(replace(job, key=places.key, executor=places.executor)))


def thinned(jobs: Sequence[Composed], folders: Folders) -> tuple[Sequence[Composed], Sequence[Composed]]:
    """The jobs that sweep.exclude keeps, and the others; says how many those are."""
    if not any((job.values.get("sweep") or {}).get("exclude") for job in jobs):
        return jobs, ()
    from builder.config.sweeps.exclude import thin

    found = thin(jobs, resolve.writer(jobs[0], folders))
    if found.excluded:
        print(f"sweep.exclude: {len(found.excluded)} of {len(jobs)} cells left out", file=sys.stderr)
    for rule in found.idle:
        print(f"warning: sweep.exclude: {rule} matches no cell", file=sys.stderr)
    return found.kept, found.excluded


def equipped(job: Job) -> Job:
    """The job without the cells of a sweep that need a tool which is not on this machine; raises a plain build's."""
    if all(recipe.target.kind == "cpu" and recipe.package.kind == "mlc" for recipe in job.recipes):
        return job  # they need none, and a build with nothing to do has no time to load the table
    from builder.targets import tools

    refused = dict[str, Unsupported]()
    for goal, recipe in zip(job.plan.goals, job.recipes, strict=True):
        target = recipe.target
        several = ("cuda.several",) if len(target.arch) > 1 else ()
        kinds = (target.kind, f"{target.kind}.{target.library}", recipe.package.kind, *several)
        for tool in tools.lacking(*kinds):
            if is_made(job, goal, tool.program):
                continue
            group = "package" if recipe.package.kind in tool.needed else "target"
            refused.setdefault(recipe.name, tools.refusal(tool, f"{group}={recipe.choices[group]}"))
    if refused and len(job.names) == 1:
        raise refused[job.names[0]]
    if len(job.names) > 1:  # a plain build without a linker fails in its step lower, before that runs
        refused |= unlinked(job)
    return without(job, refused) if refused else job


def is_made(job: Job, goal: Goal, program: str) -> bool:
    """Whether the first steps of a goal that run this program have their results, made on another machine perhaps."""
    chain = (job.plan.steps[id_] for id_ in goal.steps)
    steps = {step.id: step for step in chain if program in step.programs and not step.inputs}
    return bool(steps) and all(verdict.status == "hit" for verdict in verdicts(Plan(steps, ()), job.store).values())


def verdicts(plan: Plan, store: FileStore) -> dict[str, Verdict]:
    """examine(), where results in a shared store count as there."""
    if type(store) is FileStore:
        return examine(plan, store)
    from builder.remote.ahead import ahead
    from builder.remote.store import SharedStore

    assert isinstance(store, SharedStore)
    return ahead(plan, store)


def unlinked(job: Job) -> dict[str, Unsupported]:
    """The recipes whose library no linker of this machine makes, and that was not made elsewhere either."""
    from builder.targets import link

    found = {}
    for goal, recipe in zip(job.plan.goals, job.recipes, strict=True):
        if recipe.target.library == "so" and recipe.target.triple.endswith("linux-gnu"):
            try:
                link.require_linker(recipe.target.triple)
            except StepError as error:
                if is_made(job, goal, "linker"):
                    continue
                found[recipe.name] = Unsupported(f"target={recipe.choices['target']}: {error.message}", error.hint)
    return found


def runnable(job: Job, what: str) -> Job:
    """The job without the cells of a sweep that this machine cannot run; raises a plain one's. ``what``: "bench
    measures"."""
    refused: dict[str, BuildError] = {}
    for recipe in job.recipes:
        if not platforms.runs_here(recipe.target, recipe.metadata.tensor_parallel_shards):
            refused[recipe.name] = Unsupported(
                f"{what} on this machine, which cannot run a library for {platforms.platform_of(recipe.target)}",
                "`build`, with the same overrides, builds it here, for one that can",
            )
    if refused and len(job.names) == 1:
        raise refused[job.names[0]]
    return without(job, refused) if refused else job


def decided(job: Job) -> Job:
    """The job with the rules of every budget that the store has the result of; as it is, where there is none."""
    if not any(recipe.undecided for recipe in job.recipes):
        return job
    from builder.planner.schemes import budget

    recipes = budget.decide(job.recipes, job.plan, job.store)
    return replace(job, recipes=recipes, plan=graph.build_plan(recipes))


def undecided(job: Job, name: str) -> bool:
    """Whether the rules of a recipe are still to be picked, so that ``job.plan`` ends with that."""
    return any(recipe.undecided for recipe in job.recipes if recipe.name == name)


def without(job: Job, refused: Mapping[str, BuildError]) -> Job:
    """The job with some of its recipes refused."""
    recipes = tuple(recipe for recipe in job.recipes if recipe.name not in refused)
    return replace(job, recipes=recipes, plan=graph.build_plan(recipes), refused={**job.refused, **refused})


def distinct(jobs: Sequence[Composed]) -> list[Composed]:
    """Jobs of a sweep that would share a name get one that says how they differ."""
    if len(jobs) == 1:
        return list(jobs)
    common = set.intersection(*(set(job.overrides) for job in jobs))
    done = []
    for job in jobs:
        own = [o.lstrip("+") for o in job.overrides if o not in common and not CHOICE.match(o)]
        if job.values.get("name") is None and own:
            stem = resolve.name_of_choices(job.choices)
            tail = ",".join(re.sub(r'[/\\<>:"|?*]+', "_", last_of(o)) for o in own)  # "hf\://org" names no folder
            values = {**job.values, "name": f"{stem}-{tail}"}
        else:
            values = job.values
        done.append(replace(job, values=values))
    return done


def last_of(override: str) -> str:
    """ "budget=4.5" of quant.budget=4.5."""
    key, equals, value = override.partition("=")
    return key.rpartition(".")[2] + equals + value


def check_pins(recipes: Sequence[Recipe]) -> None:
    """Raises UserError when a tool that a recipe pins is not the one installed."""
    from importlib.metadata import PackageNotFoundError, version

    from builder.core.errors import UserError

    for recipe in recipes:
        for tool, wanted in recipe.pins.tools.items():
            try:
                found = version(tool)
            except PackageNotFoundError:
                found = "not installed"
            if found != wanted:
                raise UserError(f"pins.tools.{tool} is {wanted}, found {found}", f"pip install {tool}=={wanted}")
