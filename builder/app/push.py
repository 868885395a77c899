"""Upload what this machine has of a request's results, also when it was there before. Builds nothing."""

from __future__ import annotations

from typing import NamedTuple

from llm_build.app.request import BuildRequest
from llm_build.app.session import Session
from llm_build.app.share import publish, shared_of
from llm_build.core.examine import StepStatus, examine
from llm_build.core.record import Record


class Pushed(NamedTuple):
    """``results``: how many are in the shared store now; ``missing``: steps that have no result on this machine."""

    url: str
    results: int
    uploaded_nbytes: int
    missing: list[str]


def push(request: BuildRequest, session: Session) -> Pushed:
    """Raises BuildError when the shared store is away or refuses."""
    store = shared_of(request.store, writes=True)
    verdicts = examine(request.plan, store)
    records = {verdict.key: verdict.record for verdict in verdicts.values() if verdict.record}
    missing = [verdict.step.name for verdict in verdicts.values() if not verdict.record]
    with session.listen(None) as listen:
        for record in records.values():
            store.offer(record)
        store.drain(listen)
        publish(request, _artifacts(request, verdicts), listen)
    if trouble := store.connection.failure():
        raise trouble
    return Pushed(store.location.url, len(records), store.uploads.queue.moved, missing)


def _artifacts(request: BuildRequest, verdicts: dict[str, StepStatus]) -> dict[str, Record]:
    """The record of each recipe's artifact that is here, by name."""
    artifacts = {goal.name: verdicts.get(goal.artifact) for goal in request.plan.goals if goal.artifact}
    return {name: verdict.record for name, verdict in artifacts.items() if verdict and verdict.record}
