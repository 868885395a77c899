"""What runs and what does not, on a store in memory."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.core.events import Grew
from builder.core.plan import Goal, Plan, check_plan
from builder.core.step import Input, Resources, Step
from tests.core.fakes import Bench, plan_of, with_params


def chain(noise: int = 0, word: str = "a") -> Plan:
    return plan_of(
        Step("a", "first", "concat", {"word": word, "noise": noise}),
        Step("b", "second", "concat", {}, {"in": Input("a", "out")}),
        Step("c", "third", "concat", {"n": 1}, {"in": Input("b", "out")}),
    )


def fan(names: str = "xyz", **text: str) -> Plan:
    text = {name: name for name in names} | text
    return plan_of(
        Step("src", "source", "letters", {"text": text}),
        Step("lst", "list", "listing", {"names": list(names)}),
        Step(
            "q",
            "quantize",
            "concat",
            {"bits": 4},
            {"list": Input("lst", "items.json"), "source": Input("src", "tensor/*")},
            expand="list",
        ),
        Step("p", "package", "concat", {}, {"shards": Input("q", "*")}),
    )


def test_second_run_hits_everything() -> None:
    bench = Bench()
    assert bench.ran(chain()) == ["first", "second", "third"]
    outcome = bench.build(chain())
    assert {done.status for done in outcome.steps.values()} == {"hit"}
    assert (outcome.goal("goal"), outcome.exit_code, bench.executor.started) == ("fresh", 0, [])


def test_early_cutoff_stops_where_the_bytes_are_the_same() -> None:
    bench = Bench()
    bench.ran(chain())
    assert bench.ran(chain(noise=1)) == ["first"]
    assert bench.ran(chain(word="b")) == ["first", "second", "third"]
    assert bench.ran(chain(word="a")) == []


def test_fan_out_redoes_the_changed_item_alone() -> None:
    bench = Bench()
    assert bench.ran(fan()) == [
        "list", "package", "quantize[x]", "quantize[y]", "quantize[z]", "source",
    ]  # fmt: skip
    assert bench.ran(fan(y="Y")) == ["package", "quantize[y]", "source"]
    assert bench.ran(fan("xyzw", y="Y")) == ["list", "package", "quantize[w]", "source"]
    outcome = bench.build(fan("xz"))
    assert sorted(done.name for done in outcome.finished("goal")) == [
        "list", "package", "quantize[x]", "quantize[z]", "source",
    ]  # fmt: skip
    assert bench.output(outcome, "p") == b"shards:x/out=bits=4,item=x,part:x;z/out=bits=4,item=z,part:z"


def test_fan_out_is_announced_and_its_plan_is_grown() -> None:
    bench = Bench()
    before = bench.examine(fan())
    assert (before["quantize"].status, before["quantize"].on) == ("waits", ("list",))
    outcome = bench.build(fan())
    grew = [event for event in bench.events if isinstance(event, Grew)]
    assert grew == [Grew("q", ("q[x]", "q[y]", "q[z]"), ("quantize[x]", "quantize[y]", "quantize[z]"))]
    assert outcome.plan.goals[0].steps == ("src", "lst", "q[x]", "q[y]", "q[z]", "p")
    assert list(bench.examine(fan())) == ["source", "list", "quantize[x]", "quantize[y]", "quantize[z]", "package"]


def test_fan_out_of_nothing() -> None:
    bench = Bench()
    assert bench.ran(fan("")) == ["list", "package", "source"]
    assert bench.ran(fan("")) == []
    assert {verdict.status for verdict in bench.examine(fan("")).values()} == {"hit"}


def test_items_of_two_templates_may_feed_each_other() -> None:
    plan = fan()
    second = Step("r", "again", "concat", {}, {"list": Input("lst", "items.json"), "source": Input("src", "tensor/*"),
                                               "all": Input("q", "*")}, expand="list")  # fmt: skip
    both = plan_of(*plan.steps.values(), second)
    bench = Bench()
    assert [name for name in bench.ran(both) if name.startswith("again")] == ["again[x]", "again[y]", "again[z]"]
    assert bench.ran(both) == []


def test_a_step_that_two_goals_share_runs_once() -> None:
    steps = list(chain().steps.values())
    other = Step("d", "third", "concat", {"n": 2}, {"in": Input("b", "out")})
    plan = plan_of(*steps, other, goals=(Goal("one", ("a", "b", "c")), Goal("two", ("a", "b", "d"))))
    bench = Bench()
    outcome = bench.build(plan)
    assert bench.executor.started == ["first", "second", "third", "third"]
    assert [done.name for done in outcome.finished("two")] == ["first", "second", "third"]
    again = bench.build(with_params(plan, "d", n=3))
    assert (again.goal("one"), again.goal("two")) == ("fresh", "built")


def test_failure_skips_what_needs_it_and_is_not_cached() -> None:
    plan = plan_of(
        Step("a", "bad", "broken", {}),
        Step("b", "needs", "concat", {}, {"in": Input("a", "out")}),
        Step("c", "needs too", "concat", {}, {"in": Input("b", "out")}),
        Step("d", "free", "concat", {}),
    )
    bench = Bench(cpu=1)
    for _ in range(2):
        outcome = bench.build(plan)
        statuses = {done.name: done.status for done in outcome.steps.values()}
        assert (statuses["bad"], statuses["needs"], statuses["needs too"]) == ("failed", "skipped", "skipped")
        assert outcome.steps["b"].reason == "needs bad, which failed"
        assert outcome.steps["c"].reason == "needs needs, which was skipped"
        assert (outcome.exit_code, outcome.goal("goal")) == (1, "failed")
        assert bench.executor.started == ["bad"]
    assert {done.name: done.status for done in bench.build(plan, keep_going=True).steps.values()}["free"] == "ran"


def test_failed_list_skips_its_template_and_readers() -> None:
    plan = with_params(fan(), "lst")
    steps = {**plan.steps, "lst": Step("lst", "list", "broken", {})}
    outcome = Bench().build(Plan(steps, plan.goals), keep_going=True)
    assert {done.name: done.status for done in outcome.steps.values()} == {
        "source": "ran", "list": "failed", "quantize": "skipped", "package": "skipped",
    }  # fmt: skip


def test_failed_source_skips_the_items() -> None:
    plan = fan()
    outcome = Bench().build(
        Plan({**plan.steps, "src": Step("src", "source", "broken", {})}, plan.goals), keep_going=True
    )
    statuses = {done.name: done.status for done in outcome.steps.values()}
    assert statuses == {
        "source": "failed", "list": "ran", "quantize[x]": "skipped", "quantize[y]": "skipped",
        "quantize[z]": "skipped", "package": "skipped",
    }  # fmt: skip


def test_an_output_that_was_not_made_is_a_clear_failure() -> None:
    plan = plan_of(Step("a", "first", "concat", {}), Step("b", "second", "concat", {}, {"in": Input("a", "wrong")}))
    error = Bench().build(plan).steps["b"].error
    assert error
    assert error.message == "first made no 'wrong'; it made: out"


def test_red_validation_fails_the_goal_but_not_the_artifact() -> None:
    plan = plan_of(
        Step("a", "package", "concat", {}),
        Step("b", "verify", "broken", {}, {"in": Input("a", "out")}, validation=True),
        goals=(Goal("goal", ("a", "b"), "a"),),
    )
    outcome = Bench().build(plan)
    assert (outcome.goal("goal"), outcome.exit_code, outcome.steps["b"].validation) == ("failed", 1, True)
    assert "a" in outcome.records


@pytest.mark.parametrize(("cpu", "memory", "most"), [(4, 0, 4), (2, 0, 2), (4, 20, 2), (4, 15, 1), (4, 5, 1)])
def test_admission_counts_processors_and_memory(cpu: int, memory: int, most: int) -> None:
    bench = Bench(cpu, memory)
    bench.ran(plan_of(*(Step(f"s{i}", f"s{i}", "concat", {"i": i}, resources=Resources(1, 10)) for i in range(6))))
    assert bench.executor.most == most


def test_the_longest_way_starts_first() -> None:
    bench = Bench(cpu=1)
    short = [Step(f"s{i}", f"short{i}", "concat", {"i": i}) for i in range(3)]
    bench.ran(plan_of(*short, *chain().steps.values()))
    assert bench.executor.started[:2] == ["first", "second"]


def test_of_equal_steps_the_largest_starts_first() -> None:
    """Or it would start last and end alone, while the other processors wait."""
    bench = Bench(cpu=1)
    bench.ran(fan("xyz", y="a much longer text"))
    assert next(name for name in bench.executor.started if name.startswith("quantize[")) == "quantize[y]"


@pytest.mark.parametrize(
    ("steps", "complaint"),
    [
        ([Step("a", "a", "f", {}, {"in": Input("z", "out")})], "unknown step"),
        ([Step("a", "a", "f", {}, {"i": Input("b", "o")}), Step("b", "b", "f", {}, {"i": Input("a", "o")})], "cycle"),
        ([Step("a", "same", "f", {}), Step("b", "same", "f", {})], "two steps of one name"),
        ([Step("a", "a", "f", {}, expand="list")], "no port"),
    ],
)
def test_impossible_plans_are_refused(steps: list[Step], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_plan(plan_of(*steps))


def reading(ids: set[int]) -> dict[str, Input]:
    return {f"p{id_}": Input(f"s{id_}", "out") for id_ in ids}


@st.composite
def edits(draw: st.DrawFn) -> list[Plan]:
    """A random DAG of up to 7 steps, and a few versions of it with other params and wiring kept."""
    count = draw(st.integers(1, 7))
    wiring = [draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set() for i in range(count)]
    versions = draw(st.lists(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=count, max_size=count),
                             min_size=2, max_size=4))  # fmt: skip
    return [
        plan_of(
            *(
                Step(
                    f"s{i}", f"s{i}", "concat", {"noise": noise, "x": x}, {f"p{j}": Input(f"s{j}", "out") for j in ins}
                )
                for i, (ins, (noise, x)) in enumerate(zip(wiring, version, strict=True))
            )
        )
        for version in versions
    ]


@settings(max_examples=60, deadline=None)
@given(edits())
def test_every_step_runs_once_per_distinct_input_and_results_are_those_of_a_fresh_build(versions: list[Plan]) -> None:
    bench = Bench()
    ran: list[str] = []
    seen: set[str] = set()
    for plan in versions:
        outcome = bench.build(plan)
        fresh = Bench()
        wanted = fresh.build(plan)
        for id_, record in wanted.records.items():
            assert bench.output(outcome, id_) == fresh.output(wanted, id_)
            identity = json.dumps([plan.steps[id_].params, record.parts["inputs"]])
            seen.add(identity)
            ran += [identity] * (outcome.steps[id_].status == "ran")
    assert sorted(ran) == sorted(seen)
