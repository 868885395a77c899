"""A store with another one behind it: the coordinator asks for all ready steps at once, and goes on meanwhile."""

from __future__ import annotations

from llm_build.core.errors import StepError
from llm_build.core.events import Event, Warned
from llm_build.core.record import Record
from llm_build.core.run import run
from llm_build.core.step import Input, Resources
from llm_build.core.store import RemoteLookup
from tests.core.fakes import FUNCTIONS, FakeSources, plan_of
from tests.core.inprocess import InProcessExecutor
from tests.core.memory_store import MemoryStore
from tests.core.toy import step_of


class Backed(MemoryStore):
    """``elsewhere`` are records of another store; answers come after ``patience`` calls of news."""

    def __init__(self, patience: int = 3) -> None:
        super().__init__()
        self.elsewhere: dict[str, Record] = {}
        self.asked: list[str] = []
        self.waiting: list[str] = []
        self.left = self.patience = patience
        self.at_once: list[int] = []

    def request_remote(self, key: str) -> bool:
        if key in self.asked:
            return False
        self.asked.append(key)
        self.waiting.append(key)
        return True

    def poll_events(self, wait_s: float) -> list[Event | RemoteLookup]:
        self.left -= 1
        if self.left > 0 or not self.waiting:
            return []
        self.left = self.patience
        self.at_once.append(len(self.waiting))
        found: list[Event | RemoteLookup] = [Warned("", "", "there is news")]
        for key in self.waiting:
            if key in self.elsewhere:
                self.records[key] = self.elsewhere[key]
            found.append(RemoteLookup(key))
        self.waiting.clear()
        return found


PLAN = plan_of(
    *(step_of(name, name, "concat", {"of": name}) for name in ("a", "b", "c")),
    step_of("d", "d", "concat", {}, {"a": Input("a", "out"), "b": Input("b", "out"), "c": Input("c", "out")}),
    step_of("twin", "twin", "concat", {"of": "a"}),
)


def build(store: Backed, plan=PLAN, keep_going: bool = False):
    events: list[Event] = []
    executor = InProcessExecutor(store, FUNCTIONS, Resources(4))
    outcome = run(plan, store, executor, events.append, keep_going, FakeSources())
    return {done.name: done.status for done in outcome.steps.values()}, events


def test_what_is_elsewhere_is_a_hit_and_what_is_not_runs():
    first = Backed(1)
    assert set(build(first)[0].values()) <= {"ran", "fresh"}
    assert len(first.asked) == 4  # the twins ask once
    second = Backed()
    second.blobs = first.blobs
    second.elsewhere = {key: r for key, r in first.records.items() if r.parts["params"] != {"of": "b"}}
    statuses, events = build(second)
    assert statuses == {"a": "fresh", "b": "ran", "c": "fresh", "twin": "fresh", "d": "fresh"}
    assert second.at_once == [3, 1]  # all that are ready at once, then what follows
    assert sum(isinstance(event, Warned) for event in events) == 2


def test_nothing_is_asked_twice_nor_for_what_is_here():
    store = Backed(1)
    build(store)
    asked = list(store.asked)
    assert set(build(store)[0].values()) == {"fresh"}
    assert store.asked == asked


def test_after_a_failure_nothing_more_is_asked():
    plan = plan_of(
        step_of("bad", "bad", "broken", {}),
        step_of("ok", "ok", "concat", {}),
        step_of("after", "after", "concat", {}, {"x": Input("ok", "out")}),
    )
    store = Backed(1)
    statuses, events = build(store, plan)
    assert statuses["bad"] == "failed"
    assert statuses["after"] in ("skipped", "ran")
    assert any(isinstance(getattr(event, "error", None), StepError) for event in events)
    assert set(build(Backed(1), plan, keep_going=True)[0].values()) == {"failed", "ran"}
