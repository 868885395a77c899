"""`build why`: the parts of a step's key now and last time."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import NamedTuple

from llm_build.core.errors import UserError
from llm_build.core.examine import PlanState, examine_all
from llm_build.core.fingerprint import FileSources, Sources
from llm_build.core.plan import Plan
from llm_build.core.reason import Difference
from llm_build.core.status import Status
from llm_build.core.step import Step
from llm_build.core.step_io import Json
from llm_build.core.store import Store


class Explanation(NamedTuple):
    """``parts`` is empty while the step is blocked; ``last_parts`` is None when it was never built or its record is
    gone."""

    step: Step
    status: Status
    reason: str
    key: str
    parts: Mapping[str, Json]
    last_key: str
    last_parts: Mapping[str, Json] | None
    differences: tuple[Difference, ...]
    files: Mapping[str, str]  # {module file: digest of what it means} behind the fingerprint of the code


def explain(plan: Plan, store: Store, name: str, goal: str = "", sources: Sources | None = None) -> Explanation:
    """Why the step ``name`` is as it is. UserError with the nearest names when there is no such step."""
    state = PlanState(plan, store, sources or FileSources(store))
    verdicts = examine_all(state)
    state.sources.save()
    step = _find_step(state, name, goal)
    verdict, identity, last_result = verdicts[step.id], state.identities.get(step.id), state.last_result_of(step)
    last = store.load(last_result.key).record if last_result else None
    differences = state.differences(step, identity, last) if identity and last else []
    return Explanation(
        step=step,
        status=verdict.status,
        reason=verdict.reason,
        key=verdict.key,
        parts=identity.parts if identity else {},
        last_key=last_result.key if last_result else "",
        last_parts=last.parts if last else None,
        differences=tuple(differences),
        files=state.sources.code(step.function, step.code)[1],
    )


def _find_step(state: PlanState, name: str, goal: str = "") -> Step:
    known: list[str] = []
    for candidate in state.plan.goals:
        if goal in ("", candidate.name):
            for id_ in state.ids_of(candidate):
                if name in (id_, state.steps[id_].name):
                    return state.steps[id_]
                known.append(state.steps[id_].name)
    near = difflib.get_close_matches(name, known, 3) or known[:12]
    raise UserError(f"no step {name!r} in this plan; there are: {', '.join(near)}", "see `build plan` for all of them")
