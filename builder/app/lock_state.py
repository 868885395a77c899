"""What is true of a request right now, in the shape of its lock: all of it after a build, what is known before one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llm_build.app.request import BuildRequest
from llm_build.config.schema import Recipe, recipe_document
from llm_build.core.digest import digest_of_names
from llm_build.core.examine import PlanState, StepStatus, examine_all
from llm_build.core.fingerprint import FileSources
from llm_build.core.plan import Goal, needed_by
from llm_build.core.record import Record
from llm_build.core.step import Step
from llm_build.provenance.lock_file import Cell, Facts, Lock, Names, recipe_of
from llm_build.provenance.locked_facts import flat, quality_of, settings_of


class LockState(NamedTuple):
    """``modules``: {code fingerprint: {module file: digest}}, what each fingerprint in the lock is made of."""

    lock: Lock
    modules: Mapping[str, Names]


def lock_state(request: BuildRequest) -> LockState:
    """Looks, runs nothing, changes nothing on disk but caches."""
    state = PlanState(request.plan, request.store, FileSources(request.store))
    verdicts = examine_all(state)
    state.sources.save()
    cells, tools, modules = {}, dict[str, str](), dict[str, Names]()
    for goal, recipe in zip(request.plan.goals, request.recipes, strict=True):
        steps = _steps_of(state, goal)
        cells[goal.name] = _cell_of(state, verdicts, goal, recipe, steps)
        tools |= {tool: state.sources.tool(tool) for step in steps if not step.watch for tool in step.tools}
        modules |= dict(state.sources.code(step.function, step.code) for step in steps)
    overrides = request.recipes[0].overrides if request.recipes else ()
    recipe_name = request.recipes[0].choices.get("recipe") if request.recipes else None
    return LockState(Lock(recipe_name or recipe_of(overrides), dict(sorted(tools.items())), cells), modules)


def _steps_of(state: PlanState, goal: Goal) -> list[Step]:
    """Those that make the artifact, fan-outs as one; all that is planned while the artifact is not."""
    if not goal.artifact:
        return [state.plan.steps[id_] for id_ in goal.steps]
    artifact = state.plan.steps[goal.artifact]
    needed = needed_by(artifact, state.plan)
    return [*(needed[id_] for id_ in goal.steps if id_ in needed), artifact]


def _cell_of(
    state: PlanState, verdicts: Mapping[str, StepStatus], goal: Goal, recipe: Recipe, steps: Sequence[Step]
) -> Cell:
    artifact = verdicts.get(goal.artifact)
    made = artifact.record.outputs if artifact and artifact.record else {}
    fetch = next((verdicts[step.id].record for step in steps if step.watch), None)
    checks = [verdicts[id_].record for id_ in goal.steps if id_ in verdicts and state.steps[id_].validation]
    return Cell(
        artifact=state.plan.steps[goal.artifact].name if goal.artifact else "",
        choices=dict(recipe.choices),
        settings=settings_of(recipe_document(recipe), recipe.undecided),
        checkpoint=_checkpoint_of(recipe, fetch),
        inputs=_inputs_of(steps),
        code={step.name: state.sources.code(step.function, step.code)[0] for step in steps},
        steps=_keys_of(state, verdicts, steps),
        outputs={name: output.digest for name, output in sorted(made.items())},
        nbytes={name: output.nbytes for name, output in sorted(made.items())},
        quality=quality_of(record.facts for record in checks if record),
    )


def _checkpoint_of(recipe: Recipe, fetch: Record | None) -> Names:
    """``fetch``: the record of the step that read it, None before it was read. There is no path in it."""
    names = {"source": recipe.checkpoint.uri or "folder"}
    if recipe.model.source and recipe.checkpoint.kind == "hf":
        names["asked"] = recipe.model.source
    if fetch is None:
        return names
    small = {name: output.digest for name, output in fetch.outputs.items() if name.startswith("file/")}
    return {**names, "digest": fetch.facts["checkpoint"], **{k.replace("/", " ", 1): v for k, v in small.items()}}


def _inputs_of(steps: Sequence[Step]) -> Facts:
    facts: dict[str, Any] = {}
    for step in steps:
        params = {name: step.params[name] for name in step.locked_params}
        facts |= {f"{step.name}.{name}": value for name, value in flat(params).items()}
    return facts


def _keys_of(state: PlanState, verdicts: Mapping[str, StepStatus], steps: Sequence[Step]) -> Names:
    """The keys that are known already."""
    keys: dict[str, str] = {}
    for step in steps:
        if step.watch:
            continue
        if not step.expand:
            keys |= {step.name: verdicts[step.id].key} if verdicts[step.id].key else {}
        elif step.id in state.items:
            items = {name: verdicts[id_].key for name, id_ in state.items[step.id]}
            keys |= {f"{step.name}[*]": digest_of_names(items)} if all(items.values()) else {}
    return keys
