"""What runs and what does not, on a store in memory."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_build.core.events import Expanded, Warned
from llm_build.core.plan import Goal, Plan, check_plan
from llm_build.core.record import LastResult
from llm_build.core.step import Input, Resources, Step
from tests.core.fakes import Bench, plan_of, with_params
from tests.core.toy import step_of


def chain(noise: int = 0, word: str = "a") -> Plan:
    return plan_of(
        step_of("a", "first", "concat", {"word": word, "noise": noise}),
        step_of("b", "second", "concat", {}, {"in": Input("a", "out")}),
        step_of("c", "third", "concat", {"n": 1}, {"in": Input("b", "out")}),
    )


def fan(names: str = "xyz", **text: str) -> Plan:
    text = {name: name for name in names} | text
    return plan_of(
        step_of("src", "source", "letters", {"text": text}),
        step_of("lst", "list", "listing", {"names": list(names)}),
        step_of(
            "q",
            "quantize",
            "concat",
            {"bits": 4},
            {"list": Input("lst", "items.json"), "source": Input("src", "tensor/*")},
            expand="list",
        ),
        step_of("p", "package", "concat", {}, {"shards": Input("q", "*")}),
    )


def test_second_run_hits_everything() -> None:
    bench = Bench()
    assert bench.ran(chain()) == ["first", "second", "third"]
    outcome = bench.build(chain())
    assert {done.status for done in outcome.steps.values()} == {"fresh"}
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
    assert (before["quantize"].status, before["quantize"].on) == ("blocked", ("list",))
    outcome = bench.build(fan())
    grew = [event for event in bench.events if isinstance(event, Expanded)]
    assert grew == [Expanded("q", ("q[x]", "q[y]", "q[z]"), ("quantize[x]", "quantize[y]", "quantize[z]"))]
    assert outcome.plan.goals[0].steps == ("src", "lst", "q[x]", "q[y]", "q[z]", "p")
    assert list(bench.examine(fan())) == ["source", "list", "quantize[x]", "quantize[y]", "quantize[z]", "package"]


def test_fan_out_of_nothing() -> None:
    bench = Bench()
    assert bench.ran(fan("")) == ["list", "package", "source"]
    assert bench.ran(fan("")) == []
    assert {verdict.status for verdict in bench.examine(fan("")).values()} == {"fresh"}


def test_items_of_two_templates_may_feed_each_other() -> None:
    plan = fan()
    inputs = {"list": Input("lst", "items.json"), "source": Input("src", "tensor/*"), "all": Input("q", "*")}
    second = step_of("r", "again", "concat", {}, inputs, expand="list")
    both = plan_of(*plan.steps.values(), second)
    bench = Bench()
    assert [name for name in bench.ran(both) if name.startswith("again")] == ["again[x]", "again[y]", "again[z]"]
    assert bench.ran(both) == []


def test_an_item_may_read_the_item_of_another_template() -> None:
    """It waits for that alone, and is redone when that changes; where the second list comes first as well."""

    def plan(early: bool = False, **text: str) -> Plan:
        cuts = [
            step_of("l", "list of cuts", "second_listing", {"names": ["x", "y"]}),
            step_of(
                "r", "cut", "concat", {}, {"list": Input("l", "items.json"), "made": Input("q", "*")}, expand="list"
            ),
        ]
        first = list(fan("xy", **text).steps.values())
        return plan_of(*cuts, *first) if early else plan_of(*first, *cuts)

    for early in (False, True):
        bench = Bench()
        outcome = bench.build(plan(early))
        assert bench.output(outcome, "r[x]") == b"item=x,one:bits=4,item=x,part:x"
        assert bench.ran(plan(early)) == []
        assert bench.ran(plan(early, y="Y")) == ["cut[y]", "package", "quantize[y]", "source"]


def test_a_step_that_two_goals_share_runs_once() -> None:
    steps = list(chain().steps.values())
    other = step_of("d", "third", "concat", {"n": 2}, {"in": Input("b", "out")})
    plan = plan_of(*steps, other, goals=(Goal("one", ("a", "b", "c")), Goal("two", ("a", "b", "d"))))
    bench = Bench()
    outcome = bench.build(plan)
    assert bench.executor.started == ["first", "second", "third", "third"]
    assert [done.name for done in outcome.finished("two")] == ["first", "second", "third"]
    again = bench.build(with_params(plan, "d", n=3))
    assert (again.goal("one"), again.goal("two")) == ("fresh", "ran")


def test_failure_skips_what_needs_it_and_is_not_cached() -> None:
    plan = plan_of(
        step_of("a", "bad", "broken", {}),
        step_of("b", "needs", "concat", {}, {"in": Input("a", "out")}),
        step_of("c", "needs too", "concat", {}, {"in": Input("b", "out")}),
        step_of("d", "free", "concat", {}),
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
    steps = {**plan.steps, "lst": step_of("lst", "list", "broken", {})}
    outcome = Bench().build(Plan(steps, plan.goals), keep_going=True)
    assert {done.name: done.status for done in outcome.steps.values()} == {
        "source": "ran", "list": "failed", "quantize": "skipped", "package": "skipped",
    }  # fmt: skip


def test_failed_source_skips_the_items() -> None:
    plan = fan()
    outcome = Bench().build(
        Plan({**plan.steps, "src": step_of("src", "source", "broken", {})}, plan.goals), keep_going=True
    )
    statuses = {done.name: done.status for done in outcome.steps.values()}
    assert statuses == {
        "source": "failed", "list": "ran", "quantize[x]": "skipped", "quantize[y]": "skipped",
        "quantize[z]": "skipped", "package": "skipped",
    }  # fmt: skip


def test_an_output_that_was_not_made_is_a_clear_failure() -> None:
    plan = plan_of(
        step_of("a", "first", "concat", {}), step_of("b", "second", "concat", {}, {"in": Input("a", "wrong")})
    )
    error = Bench().build(plan).steps["b"].error
    assert error
    assert error.message == "first made no 'wrong'; it made: out"


def test_red_validation_fails_the_goal_but_not_the_artifact() -> None:
    plan = plan_of(
        step_of("a", "package", "concat", {}),
        step_of("b", "verify", "broken", {}, {"in": Input("a", "out")}, validation=True),
        goals=(Goal("goal", ("a", "b"), "a"),),
    )
    outcome = Bench().build(plan)
    assert (outcome.goal("goal"), outcome.exit_code, outcome.steps["b"].validation) == ("failed", 1, True)
    assert "a" in outcome.records


@pytest.mark.parametrize(("cpu", "memory", "most"), [(4, 0, 4), (2, 0, 2), (4, 20, 2), (4, 15, 1), (4, 5, 1)])
def test_admission_counts_processors_and_memory(cpu: int, memory: int, most: int) -> None:
    bench = Bench(cpu, memory)
    bench.ran(plan_of(*(step_of(f"s{i}", f"s{i}", "concat", {"i": i}, resources=Resources(1, 10)) for i in range(6))))
    assert bench.executor.most == most


GB = 10**9


def steps_of(count: int, wanted: Resources) -> list[Step]:
    return [step_of(f"s{i}", f"s{i}", "concat", {"i": i}, resources=wanted) for i in range(count)]


def test_two_steps_of_10_gb_never_run_together_on_16_gb() -> None:
    bench = Bench(cpu=8, memory_bytes=16 * GB)
    small = [step_of(f"t{i}", f"t{i}", "concat", {"t": i}, resources=Resources(1, 3 * GB)) for i in range(6)]
    bench.ran(plan_of(*steps_of(5, Resources(1, 10 * GB)), *small))
    assert (bench.executor.peak.memory_bytes, bench.executor.most) == (16 * GB, 3)  # one large with two small ones


def test_a_step_larger_than_the_machine_runs_alone_and_says_so() -> None:
    bench = Bench(cpu=8, memory_bytes=16 * GB)
    large = step_of("l", "large", "concat", {}, resources=Resources(1, 20 * GB))
    bench.ran(plan_of(large, *steps_of(3, Resources(1, 1 * GB))))
    assert bench.executor.peak.memory_bytes == 16 * GB
    said = [event.message for event in bench.events if isinstance(event, Warned)]
    assert said == [
        "needs about 20.0 GB of memory and there are 16.0 GB: it runs alone, and the system may kill it"
    ]  # fmt: skip
    assert bench.build(plan_of(large)).steps["l"].status == "fresh"
    assert not [event for event in bench.events if isinstance(event, Warned)]


@pytest.mark.parametrize(("gpus", "wanted", "together"), [(1, 1, 1), (2, 1, 2), (4, 2, 2), (2, 8, 1), (0, 1, 6)])
def test_steps_take_turns_on_the_gpus(gpus: int, wanted: int, together: int) -> None:
    """Where there is no GPU at all the step itself says what it misses."""
    bench = Bench(cpu=8, gpu=gpus)
    bench.ran(plan_of(*steps_of(6, Resources(1, 0, wanted))))
    assert (bench.executor.most, bench.executor.peak.gpu) == (together, min(together * wanted, gpus))


def test_names_of_machines_are_no_concern_of_one_machine() -> None:
    bench = Bench(cpu=2)
    bench.ran(plan_of(*steps_of(3, Resources(1, custom={"nvcc": 1, "sm_90": 1}))))
    assert bench.executor.most == 2
    assert bench.ran(plan_of(*steps_of(3, Resources(1, custom={"xcrun": 1})))) == []


def sweep() -> Plan:
    """Two models by two schemes by two targets; libraries and weights meet in the packages."""
    found: dict[str, Step] = {}
    goals = []
    for model in "ab":
        add(found, f"fetch-{model}", {})
        add(found, f"convert-{model}", {"map": Input(f"fetch-{model}", "out")})
        for scheme in "xy":
            add(found, f"quantize-{model}{scheme}", {"map": Input(f"convert-{model}", "out")})
            for target in "pq":
                cell = f"{model}{scheme}{target}"
                add(found, f"lower-{cell}", {})
                both = {"weights": Input(f"quantize-{model}{scheme}", "out"), "library": Input(f"lower-{cell}", "out")}
                add(found, f"package-{cell}", both)
                ids = (f"fetch-{model}", f"convert-{model}", f"quantize-{model}{scheme}", f"lower-{cell}")
                goals.append(Goal(cell, (*ids, f"package-{cell}"), f"package-{cell}"))
    return Plan(found, tuple(goals))


def add(found: dict[str, Step], id_: str, inputs: dict[str, Input]) -> None:
    found[id_] = step_of(id_, id_.partition("-")[0], "concat", {"id": id_}, inputs)


@pytest.mark.parametrize(
    ("seconds", "first"),
    [
        ({"lower": 9.0}, ["lower"] * 8),  # 10 s with the package, the weights' road is 4 s long
        ({"convert": 20.0}, ["fetch", "fetch", "convert", "convert"]),
        ({"quantize": 8.0, "lower": 9.5}, ["fetch", "fetch", "lower"]),  # 11, 10.5
        ({}, ["fetch", "fetch", "convert", "convert", "quantize"]),  # nothing is known: the longest chain
    ],
)
def test_of_a_sweep_the_critical_path_starts_first(seconds: dict[str, float], first: list[str]) -> None:
    bench = Bench(cpu=1)
    for goal in sweep().goals:
        bench.store.save_last_results(
            goal.name, {name: LastResult("gone", 0.0, took) for name, took in seconds.items()}, True
        )
    assert bench.build(sweep()).exit_code == 0
    started = bench.executor.started
    assert started[: len(first)] == first
    assert len(started) == 24


def test_the_longest_way_starts_first() -> None:
    bench = Bench(cpu=1)
    short = [step_of(f"s{i}", f"short{i}", "concat", {"i": i}) for i in range(3)]
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
        ([step_of("a", "a", "f", {}, {"in": Input("z", "out")})], "unknown step"),
        (
            [step_of("a", "a", "f", {}, {"i": Input("b", "o")}), step_of("b", "b", "f", {}, {"i": Input("a", "o")})],
            "cycle",
        ),
        ([step_of("a", "same", "f", {}), step_of("b", "same", "f", {})], "two steps of one name"),
        ([step_of("a", "a", "f", {}, expand="list")], "no port"),
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
                step_of(
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
