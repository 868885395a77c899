"""What is true of a job right now, in the shape of its lock: all of it after a build, what is known before one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from builder.config.schema import Recipe, described
from builder.core.digest import digest_of_names
from builder.core.examine import Verdict, Walk, code_document, examine_all
from builder.core.fingerprint import FileSources
from builder.core.plan import Goal, needed_by
from builder.core.record import Record
from builder.core.step import Json, Step
from builder.core.store import Store
from builder.provenance.lock_file import Cell, Fact, Facts, Lock, Names

if TYPE_CHECKING:
    from builder.app.request import Job

SECTIONS = ("architecture", "metadata", "model", "package", "quant", "target", "verify")  # of the recipe
ELSEWHERE = (  # said by another section of the lock, or of no consequence for this cell
    "model.source", "model.architecture", "package.kind", "quant.calibration.text", "verify.limits",
    "verify.exact_rounded",
)  # fmt: skip
QUALITY = ("kl", "perplexity", "perplexity_original", "top1")  # of verify and verify.weights


class State(NamedTuple):
    """``modules``: {code fingerprint: {module file: digest}}, what each fingerprint in the lock is made of."""

    lock: Lock
    modules: Mapping[str, Names]


def state_of(job: Job) -> State:
    """Looks, runs nothing, changes nothing on disk but caches."""
    from builder.provenance.lock_file import recipe_of

    walk = Walk(job.plan, job.store, FileSources(job.store))
    verdicts = examine_all(walk)
    walk.sources.save()
    cells, tools, modules = {}, dict[str, str](), dict[str, Names]()
    for goal, recipe in zip(job.plan.goals, job.recipes, strict=True):
        steps = steps_of(walk, goal)
        cells[goal.name] = cell_of(walk, verdicts, goal, recipe, steps)
        tools |= {tool: walk.sources.tool(tool) for step in steps if not step.watch for tool in step.tools}
        modules |= dict(walk.sources.code(step.function, step.code) for step in steps)
    overrides = job.recipes[0].overrides if job.recipes else ()
    recipe_name = job.recipes[0].choices.get("recipe") if job.recipes else None
    return State(Lock(recipe_name or recipe_of(overrides), dict(sorted(tools.items())), cells), modules)


def known_modules(store: Store, fingerprint: str) -> Names | None:
    """What a fingerprint of an earlier build was made of, where this store has seen it."""
    document = store.load_document(code_document(fingerprint))
    return document if isinstance(document, dict) else None


def steps_of(walk: Walk, goal: Goal) -> list[Step]:
    """Those that make the artifact, fan-outs as one; all that is planned while the artifact is not."""
    if not goal.artifact:
        return [walk.plan.steps[id_] for id_ in goal.steps]
    artifact = walk.plan.steps[goal.artifact]
    needed = needed_by(artifact, walk.plan)
    return [*(needed[id_] for id_ in goal.steps if id_ in needed), artifact]


def cell_of(walk: Walk, verdicts: Mapping[str, Verdict], goal: Goal, recipe: Recipe, steps: Sequence[Step]) -> Cell:
    asked = described(recipe)
    artifact = verdicts.get(goal.artifact)
    made = artifact.record.outputs if artifact and artifact.record else {}
    fetch = next((verdicts[step.id].record for step in steps if step.watch), None)
    checks = [verdicts[id_].record for id_ in goal.steps if id_ in verdicts and walk.steps[id_].validation]
    return Cell(
        artifact=walk.plan.steps[goal.artifact].name if goal.artifact else "",
        choices=dict(recipe.choices),
        settings=settings_of(asked, recipe.undecided),
        checkpoint=checkpoint_of(recipe, fetch),
        inputs=inputs_of(steps),
        code={step.name: walk.sources.code(step.function, step.code)[0] for step in steps},
        steps=keys_of(walk, verdicts, steps),
        outputs={name: output.digest for name, output in sorted(made.items())},
        nbytes={name: output.nbytes for name, output in sorted(made.items())},
        quality=quality_of(record.facts for record in checks if record),
    )


def settings_of(asked: Mapping[str, Json], undecided: bool = False) -> Facts:
    """The recipe as build.json has it, flat; without what is null or empty and rules that are still to be picked."""
    found = flat({section: asked.get(section, {}) for section in SECTIONS})
    dropped = (*ELSEWHERE, *(("quant.rules",) if undecided else ()))
    return {key: value for key, value in found.items() if not key.startswith(dropped)}


def flat(value: Json, path: str = "") -> dict[str, Fact]:
    """{"a.b": value}. A list of plain values is one fact, its items joined by commas."""
    if isinstance(value, dict):
        below = [flat(each, f"{path}.{key}" if path else str(key)) for key, each in sorted(value.items())]
        return {key: fact for found in below for key, fact in found.items()}
    if isinstance(value, (list, tuple)):
        if any(isinstance(each, (dict, list, tuple)) for each in value):
            return flat({str(number): each for number, each in enumerate(value)}, path)
        value = ", ".join(str(each) for each in value)
    return {} if value is None or value == "" else {path: value}


def checkpoint_of(recipe: Recipe, fetch: Record | None) -> Names:
    """``fetch``: the record of the step that read it, None before it was read. There is no path in it."""
    found = {"source": recipe.checkpoint.uri or "folder"}
    if recipe.model.source and recipe.checkpoint.kind == "hf":
        found["asked"] = recipe.model.source
    if fetch is None:
        return found
    small = {name: output.digest for name, output in fetch.outputs.items() if name.startswith("file/")}
    return {**found, "digest": fetch.facts["checkpoint"], **{k.replace("/", " ", 1): v for k, v in small.items()}}


def inputs_of(steps: Sequence[Step]) -> Facts:
    found: dict[str, Any] = {}
    for step in steps:
        given = {name: step.params[name] for name in step.locked_params}
        found |= {f"{step.name}.{name}": value for name, value in flat(given).items()}
    return found


def keys_of(walk: Walk, verdicts: Mapping[str, Verdict], steps: Sequence[Step]) -> Names:
    """The keys that are known already."""
    found: dict[str, str] = {}
    for step in steps:
        if step.watch:
            continue
        if not step.expand:
            found |= {step.name: verdicts[step.id].key} if verdicts[step.id].key else {}
        elif step.id in walk.items:
            items = {name: verdicts[id_].key for name, id_ in walk.items[step.id]}
            found |= {f"{step.name}[*]": digest_of_names(items)} if all(items.values()) else {}
    return found


def quality_of(facts: Iterable[Mapping[str, Json]]) -> Facts:
    """What verify measured, to four digits: the last ones differ from CPU to CPU."""
    measured = {key: value for each in facts for key, value in each.items() if key in QUALITY}
    return {key: float(f"{value:.4g}") for key, value in sorted(measured.items())}
