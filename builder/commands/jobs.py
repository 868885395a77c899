"""What every command starts from: the recipes that were asked for, their plan, the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from builder import compose, graph, platforms, resolve
from builder.arguments import Arguments
from builder.core.errors import BuildError, StepError, Unsupported
from builder.core.examine import examine
from builder.core.filestore import FileStore, open_store
from builder.core.plan import Plan
from builder.recipe import Recipe

UNDECIDED = "the steps after allocate can be planned when it has picked the rules of quant.budget: build"


@dataclass(frozen=True, slots=True)
class Job:
    """What is to be built and where: the recipes of one command, merged into one plan.

    ``refused``: cells of a sweep that cannot be built, by name. ``names``: all cells, in the order of the sweep.
    """

    recipes: tuple[Recipe, ...]
    plan: Plan
    store: FileStore
    dist: Path
    names: tuple[str, ...]
    refused: Mapping[str, BuildError] = field(default_factory=dict)

    @property
    def outputs(self) -> dict[str, Path]:
        return {name: self.dist / name for name in self.names}


def composition_cache() -> Path:
    return resolve.store_path() / "cache" / "compose"


def folders_of(arguments: Arguments) -> compose.Folders:
    return compose.find_folders(arguments.options.config_dir)


def job_of(arguments: Arguments) -> Job:
    """The job of a plain command line: one recipe."""
    composed = compose.compose(arguments.overrides, composition_cache(), arguments.options.config_dir)
    return merge([composed], folders_of(arguments))


def merge(jobs: Sequence[compose.Composed], folders: compose.Folders) -> Job:
    """Many composed jobs as one. The store and dist folder are those of the first.

    A cell of a sweep that is Unsupported is kept as such; that of a plain build is raised.
    """
    recipes, refused, names = [], dict[str, BuildError](), []
    for composed in distinct(jobs):
        names.append(resolve.name_of(composed))
        try:
            recipes.append(resolve.resolve(composed, folders))
        except Unsupported as error:
            if len(jobs) == 1:
                raise
            refused[names[-1]] = error
    check_pins(recipes)
    places = resolve.places(jobs[0])
    plan = graph.build_plan(recipes)
    job = Job(tuple(recipes), plan, open_store(places.store), places.dist, tuple(names), refused)
    return decided(equipped(job))


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
            steps = {id_: job.plan.steps[id_] for id_ in goal.steps if job.plan.steps[id_].name == tool.step}
            if steps and all(verdict.status == "hit" for verdict in examine(Plan(steps, ()), job.store).values()):
                continue  # what it makes was made elsewhere
            group = "package" if recipe.package.kind in tool.needed else "target"
            refused.setdefault(recipe.name, tools.refusal(tool, f"{group}={recipe.choices[group]}"))
    if refused and len(job.names) == 1:
        raise refused[job.names[0]]
    if len(job.names) > 1:  # a plain build without a linker fails in its step lower, before that runs
        refused |= unlinked(job)
    return without(job, refused) if refused else job


def unlinked(job: Job) -> dict[str, Unsupported]:
    """The recipes whose library no linker of this machine makes."""
    from builder.targets import link

    found = {}
    for recipe in job.recipes:
        if recipe.target.library == "so" and recipe.target.triple.endswith("linux-gnu"):
            try:
                link.require_linker(recipe.target.triple)
            except StepError as error:
                found[recipe.name] = Unsupported(f"target={recipe.choices['target']}: {error.message}", error.hint)
    return found


def runnable(job: Job, what: str) -> Job:
    """The job without the cells of a sweep that this machine cannot run; raises a plain one's. ``what``: "bench
    measures"."""
    refused: dict[str, BuildError] = {}
    for recipe in job.recipes:
        if not platforms.runs_here(recipe.target):
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
    from builder import budget

    recipes = budget.decide(job.recipes, job.plan, job.store)
    return replace(job, recipes=recipes, plan=graph.build_plan(recipes))


def undecided(job: Job, name: str) -> bool:
    """Whether the rules of a recipe are still to be picked, so that ``job.plan`` ends with that."""
    return any(recipe.undecided for recipe in job.recipes if recipe.name == name)


def without(job: Job, refused: Mapping[str, BuildError]) -> Job:
    """The job with some of its recipes refused."""
    recipes = tuple(recipe for recipe in job.recipes if recipe.name not in refused)
    return replace(job, recipes=recipes, plan=graph.build_plan(recipes), refused={**job.refused, **refused})


def distinct(jobs: Sequence[compose.Composed]) -> list[compose.Composed]:
    """Jobs of a sweep that would share a name get one that says how they differ."""
    if len(jobs) == 1:
        return list(jobs)
    common = set.intersection(*(set(job.overrides) for job in jobs))
    done = []
    for job in jobs:
        own = [o.lstrip("+") for o in job.overrides if o not in common and not compose.CHOICE.match(o)]
        if job.values.get("name") is None and own:
            stem = resolve.name_of_choices(job.choices)
            tail = ",".join(last_of(o).replace("/", "_") for o in own)
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
