"""The words in which a step says why it has to run."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from llm_build.core.errors import UserError
from llm_build.core.examine import PlanState
from llm_build.core.plan import Goal, Plan
from llm_build.core.reason import Difference, summarize_differences
from llm_build.core.record import LastResult, Record
from llm_build.core.step import Input
from llm_build.core.step_io import Json
from llm_build.core.why import explain
from tests.core.fakes import Bench, plan_of
from tests.core.test_scheduler import chain, fan
from tests.core.toy import step_of


def lower(**params: Json) -> Plan:
    return plan_of(step_of("l", "lower", "concat", params, tools=("apache-tvm", "blake3")))


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ({"target": {"arch": "sm_80"}}, {"target": {"arch": "sm_90a"}}, "target.arch sm_80 → sm_90a"),
        ({"size": 1}, {"size": 2}, "size 1 → 2"),
        ({"passes": ["a", "b"]}, {"passes": ["a", "c"]}, "passes.1 b → c"),
        ({"passes": ["a"]}, {"passes": ["a", "c"]}, 'passes ["a"] → ["a", "c"]'),
        ({"arch": ["sm_80"], "n": 1}, {"arch": ("sm_80",), "n": 2}, "n 1 → 2"),
        ({}, {"fast": True}, "fast added (true)"),
        ({"fast": True}, {}, "fast removed (was true)"),
        ({"n": 1}, {"n": True}, "n 1 → true"),
        ({"a": 1, "b": 1}, {"a": 2, "b": 2}, "a 1 → 2, b 1 → 2"),
        (dict.fromkeys("abcde", 1), dict.fromkeys("abcde", 2), "a 1 → 2, b 1 → 2, c 1 → 2 and 2 more"),
        ({"s": "x" * 99}, {"s": "y"}, f"s {'x' * 39}… → y"),
    ],
)
def test_params(before: dict[str, Json], after: dict[str, Json], reason: str) -> None:
    bench = Bench()
    bench.ran(lower(**before))
    assert bench.reason(lower(**after), "lower") == reason


def test_never_built_and_missing() -> None:
    bench = Bench()
    assert bench.reason(chain(), "first") == "never built"
    outcome = bench.build(chain())
    del bench.store.records[outcome.steps["a"].key]
    assert bench.reason(chain(), "first") == "result missing from the store"
    assert bench.reason(chain(word="b"), "first") == "changed since a build whose record is gone"
    bench.store.blobs.pop(outcome.records["b"].outputs["out"].digest)
    bench.build(plan_of(chain().steps["a"]))
    assert bench.reason(chain(), "second") == "result missing from the store (out)"


def test_tools_and_code() -> None:
    bench = Bench()
    bench.sources.tools = {"apache-tvm": "0.26", "blake3": "1"}
    bench.sources.files["concat"] = {"llm_build/models/llama.py": "1", "llm_build/steps/lower.py": "1"}
    bench.ran(lower())
    bench.sources.tools["apache-tvm"] = "0.27"
    assert bench.reason(lower(), "lower") == "apache-tvm 0.26 → 0.27"
    bench.sources.files["concat"]["llm_build/models/llama.py"] = "2"
    assert bench.reason(lower(), "lower") == "apache-tvm 0.26 → 0.27, llm_build/models/llama.py changed"
    bench.ran(lower())
    bench.sources.files["concat"]["llm_build/new.py"] = "1"
    del bench.sources.files["concat"]["llm_build/steps/lower.py"]
    assert bench.reason(lower(), "lower") == "llm_build/new.py added, llm_build/steps/lower.py removed"
    bench.store.documents.clear()
    assert bench.reason(lower(), "lower") == "code changed"


def test_function() -> None:
    bench = Bench()
    bench.ran(lower())
    plan = plan_of(replace(lower().steps["l"], function="letters"))
    assert bench.reason(plan, "lower") == "function concat → letters"


def all_but_package(plan: Plan) -> Plan:
    """The same plan under another goal, so that the places of "goal" stay what they were."""
    steps = [step for id_, step in plan.steps.items() if id_ != "p"]
    return plan_of(*steps, goals=(Goal("other", tuple(step.id for step in steps)),))


def test_inputs_by_name() -> None:
    bench = Bench()
    bench.ran(fan())
    source = fan(y="Y").steps["src"]
    bench.ran(plan_of(source, goals=(Goal("other", ("src",)),)))
    verdicts = bench.examine(fan(y="Y"))
    assert verdicts["quantize[y]"].reason == "tensor y changed"
    assert verdicts["package"].reason == "waits for quantize[y]"
    bench.ran(all_but_package(fan(y="Y")))
    assert bench.reason(fan(y="Y"), "package") == "quantize[y] out changed"
    bench.ran(fan(y="Y"))
    bench.ran(all_but_package(fan("xyzw", y="Y")))
    assert bench.reason(fan("xyzw", y="Y"), "package") == "quantize[w] out added"


def test_ports() -> None:
    bench = Bench()
    plan = chain()
    bench.ran(plan)
    more = replace(plan.steps["b"], inputs={"in": Input("a", "out"), "also": Input("a", "out")})
    assert bench.reason(plan_of(plan.steps["a"], more), "second") == "out added"
    none = replace(plan.steps["b"], inputs={})
    assert bench.reason(plan_of(plan.steps["a"], none), "second") == "input in removed"


def test_watched_files(tmp_path: Path) -> None:
    bench = Bench()
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, 0))

    def plan(**watch: str) -> Plan:
        return plan_of(step_of("f", "fetch", "concat", {}, watch=watch))

    now = {"model.safetensors": str(path)}
    identity = PlanState(plan(**now), bench.store, bench.sources).identify(plan(**now).steps["f"])
    bench.store.commit(Record(identity.key, identity.parts, {}))
    bench.store.save_last_results("goal", {"fetch": LastResult(identity.key, 0.0, 0.0)}, True)
    assert bench.examine(plan(**now))["fetch"].status == "fresh"
    os.utime(path, ns=(1, 1))
    assert bench.reason(plan(**now), "fetch") == "model.safetensors touched"
    path.write_bytes(b"1234567")
    assert bench.reason(plan(**now), "fetch") == "model.safetensors changed (5 → 7 bytes)"
    assert bench.reason(plan(other=str(path)), "fetch") == "model.safetensors removed, other added"
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read: No such file"):
        bench.examine(plan(**{"model.safetensors": str(tmp_path / "gone")}))


def test_a_sentence_is_short() -> None:
    many = [Difference(str(n), "", "", f"d{n}") for n in range(9)]
    assert summarize_differences(many) == "d0, d1, d2 and 6 more"


def test_why_shows_both_sides() -> None:
    bench = Bench()
    first = bench.build(lower(arch="sm_80"))
    told = explain(lower(arch="sm_90a"), bench.store, "lower", sources=bench.sources)
    assert (told.status, told.reason, told.last_key) == ("stale", "arch sm_80 → sm_90a", first.steps["l"].key)
    assert (told.last_parts or {})["params"] == {"arch": "sm_80"}
    assert told.parts["params"] == {"arch": "sm_90a"}
    assert [(d.what, d.last, d.now) for d in told.differences] == [("arch", "sm_80", "sm_90a")]
    with pytest.raises(UserError, match=r"no step 'lowre' in this plan; there are: lower"):
        explain(lower(), bench.store, "lowre", sources=bench.sources)
    item = explain(fan(), bench.store, "quantize", sources=bench.sources)
    assert (item.status, item.reason, item.parts) == ("blocked", "waits for list", {})
