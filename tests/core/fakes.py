"""Plans in memory: steps that concatenate their inputs, fingerprints that a test sets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llm_build.core.errors import StepError
from llm_build.core.events import Event
from llm_build.core.examine import StepStatus, examine
from llm_build.core.plan import Goal, Plan
from llm_build.core.run import Outcome, run
from llm_build.core.step import Resources, Step
from tests.core.inprocess import Bytes, FakeStep, InProcessExecutor, MemoryOut
from tests.core.memory_store import MemoryStore


class FakeSources:
    """``files`` {function: {module file: content}}, ``tools`` {distribution: version}."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, str]] = {}
        self.tools: dict[str, str] = {}

    def code(self, function: str, more: tuple[str, ...]) -> tuple[str, dict[str, str]]:
        table = dict(self.files.get(function, {"llm_build/x.py": "1"}))
        return "code:" + "".join(f"{name}{digest}".replace("/", ".") for name, digest in table.items()), table

    def tool(self, distribution: str) -> str:
        return self.tools.get(distribution, "absent")

    def save(self) -> None: ...


def flat(value: bytes | Mapping[str, bytes]) -> bytes:
    return value if isinstance(value, bytes) else b";".join(name.encode() + b"=" + value[name] for name in value)


def concat(params: Mapping[str, Any], inputs: Bytes, out: MemoryOut) -> None:
    """Output "out": the text of the params (all but "noise") and the inputs."""
    text = "".join(f"{key}={params[key]}," for key in sorted(params) if key != "noise")
    out.write("out", text.encode() + b"|".join(port.encode() + b":" + flat(inputs[port]) for port in sorted(inputs)))


def letters(params: Mapping[str, Any], inputs: Bytes, out: MemoryOut) -> None:
    """One output "tensor/<letter>" per letter of params["text"]: its upper case."""
    for name, value in params["text"].items():
        out.write(f"tensor/{name}", value.encode())


def listing(params: Mapping[str, Any], inputs: Bytes, out: MemoryOut) -> None:
    import json

    items = [
        {"name": name, "params": {"item": name}, "inputs": {"part": ["source", f"tensor/{name}"]}}
        for name in params["names"]
    ]
    out.write("items.json", json.dumps({"items": items}).encode())


def second_listing(params: Mapping[str, Any], inputs: Bytes, out: MemoryOut) -> None:
    """Items that each read the item of that name of another template."""
    import json

    items = [
        {"name": name, "params": {"item": name}, "inputs": {"one": ["made", "out", name]}} for name in params["names"]
    ]
    out.write("items.json", json.dumps({"items": items}).encode())


def broken(params: Mapping[str, Any], inputs: Bytes, out: MemoryOut) -> None:
    raise StepError("it broke")


FUNCTIONS: dict[str, FakeStep] = {
    "concat": concat,
    "letters": letters,
    "listing": listing,
    "second_listing": second_listing,
    "broken": broken,
}


class Bench:
    """A store, fingerprints and the events of the last run."""

    def __init__(self, cpu: int = 4, memory_bytes: int = 0, gpu: int = 0) -> None:
        self.store = MemoryStore()
        self.sources = FakeSources()
        self.limits = Resources(cpu, memory_bytes, gpu)
        self.events: list[Event] = []
        self.executor = InProcessExecutor(self.store, FUNCTIONS, self.limits)

    def build(self, plan: Plan, keep_going: bool = False) -> Outcome:
        self.events = []
        self.executor = InProcessExecutor(self.store, FUNCTIONS, self.limits)
        return run(plan, self.store, self.executor, self.events.append, keep_going, self.sources)

    def ran(self, plan: Plan) -> list[str]:
        """Build, and the names of the steps that ran, sorted."""
        outcome = self.build(plan)
        assert not outcome.failed, outcome.steps
        return sorted(done.name for done in outcome.steps.values() if done.status == "ran")

    def examine(self, plan: Plan) -> dict[str, StepStatus]:
        return {verdict.step.name: verdict for verdict in examine(plan, self.store, self.sources).values()}

    def reason(self, plan: Plan, name: str) -> str:
        return self.examine(plan)[name].reason

    def output(self, outcome: Outcome, id_: str, name: str = "out") -> bytes:
        return self.store.read(outcome.records[id_].outputs[name].digest)


def plan_of(*steps: Step, goals: tuple[Goal, ...] = ()) -> Plan:
    goals = goals or (Goal("goal", tuple(step.id for step in steps)),)
    return Plan({step.id: step for step in steps}, goals)


def with_params(plan: Plan, id_: str, **params: Any) -> Plan:
    step = plan.steps[id_]
    changed = replace(step, params={**step.params, **params})
    return Plan({**plan.steps, id_: changed}, plan.goals)
