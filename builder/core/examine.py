"""Is each step of a plan up to date, and if not, why? Nothing here runs a step."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llm_build.core.digest import canonical, digest_of_names, sha256_hex
from llm_build.core.errors import StepError, UserError
from llm_build.core.fingerprint import FileSources, Sources
from llm_build.core.json_text import parse_json
from llm_build.core.plan import Goal, Plan, check_plan, goals_of_steps, producers_of
from llm_build.core.record import LastResult, Lookup, Output, Record
from llm_build.core.status import Status
from llm_build.core.step import Input, Step
from llm_build.core.step_io import File, Json
from llm_build.core.store import Store

if TYPE_CHECKING:
    from llm_build.core.reason import Difference

_VARIANT = re.compile(r"-\w+=.*$")  # of a goal's name: the keys that it was given beside its choices
_PROBLEMS = {  # of a lookup -> why the step runs
    "damaged": "blob damaged: {}",
    "garbage": "result missing from the store ({})",
    "missing": "result missing from the store ({})",
    "foreign": "the result in the store was made by someone else: {} (store.trust)",
}


class StepStatus(NamedTuple):
    step: Step
    status: Status
    reason: str
    key: str = ""  # empty while it is blocked
    record: Record | None = None
    on: tuple[str, ...] = ()  # names of the steps it waits for


class Identity(NamedTuple):
    """The key of a step whose inputs are known, and what it is the digest of."""

    key: str
    parts: Mapping[str, Json]
    groups: Mapping[str, Mapping[str, str]]


class PlanState:
    """One pass over a plan, producers first. It grows when a template's items become known."""

    def __init__(self, plan: Plan, store: Store, sources: Sources) -> None:
        check_plan(plan)
        self.plan = plan
        self.store = store
        self.sources = sources
        self.steps: dict[str, Step] = dict(plan.steps)
        self.items: dict[str, tuple[tuple[str, str], ...]] = {}  # template -> (item name, step id)
        self.records: dict[str, Record] = {}
        self.identities: dict[str, Identity] = {}
        self.missing: dict[str, set[str]] = {}  # step -> producers without a result yet
        self.readers: dict[str, list[str]] = {}
        self._goals = goals_of_steps(plan.goals)
        self._last_results: dict[str, dict[str, LastResult]] = {}
        for step in plan.steps.values():
            self._add(step)

    def _add(self, step: Step) -> None:
        named = {step.inputs[step.expand].step} if step.expand else producers_of(step)
        producers = set(expanded(tuple(named), self.items))
        for producer in producers:
            self.readers.setdefault(producer, []).append(step.id)
        self.missing[step.id] = {producer for producer in producers if producer not in self.records}

    def ready_steps(self) -> list[str]:
        return [id_ for id_, missing in self.missing.items() if not missing]

    def unblocks(self, id_: str) -> bool:
        """Whether a step waits for this result alone."""
        return any(self.missing[reader] == {id_} for reader in self.readers.get(id_, ()))

    def finish(self, id_: str, record: Record) -> list[str]:
        """Note a result; the steps that have all their inputs now."""
        self.records[id_] = record
        ready = []
        for reader in self.readers.get(id_, ()):
            missing = self.missing[reader]
            missing.discard(id_)
            if not missing:
                ready.append(reader)
        return ready

    # Fan-out

    def expand(self, template_id: str) -> list[str]:
        """Replace a template whose list of items is in the store by one step per item (``items`` has their ids, in
        order). Returns the steps that have all their inputs now."""
        template = self.steps[template_id]
        steps = self._steps_of(template)
        self.items[template_id] = tuple((step.name[len(template.name) + 1 : -1], step.id) for step in steps)
        readers = self.readers.pop(template_id, [])
        for step in steps:
            self.steps[step.id] = step
            self._goals[step.id] = self._goals.get(template_id, [])
            self.readers[step.id] = [*self.readers.get(step.id, ()), *readers]
            self._add(step)
        for reader in readers:
            self.missing[reader].discard(template_id)
            self.missing[reader].update(step.id for step in steps)
        return [id_ for id_ in [*(step.id for step in steps), *readers] if not self.missing[id_]]

    def _steps_of(self, template: Step) -> list[Step]:
        """The items of a template. StepError for what is no list of them."""
        source = template.inputs[template.expand]
        output = self._output(source)
        try:
            items: list[Json] = parse_json(self.store.read(output.digest))["items"]
            if not all(map(_is_item, items)) or len({item["name"] for item in items}) != len(items):
                raise TypeError("an item has no name, parameters or inputs, or is there twice")
            return list(items_of(template, items))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StepError(
                f"{template.name}: what the store has under {output.digest[:15]} is no list of steps",
                "whoever wrote to this store wrote something else: store.path=/another/folder",
            ) from error

    # Identity

    def identify(self, step: Step) -> Identity:
        """Key parts of a step whose producers are all done. UserError when a watched file is gone."""
        inputs: dict[str, str] = {}
        groups: dict[str, dict[str, str]] = {}
        for port, source in step.inputs.items():
            if self.is_group(source):
                groups[port] = {name: output.digest for name, _, output in self.group(source)}
                inputs[port] = digest_of_names(groups[port])
            else:
                inputs[port] = self._output(source).digest
        parts = {
            "function": step.function,
            "code": self.sources.code(step.function, step.code)[0],
            "tools": {name: self.sources.tool(name) for name in step.tools},
            "params": step.params,
            "inputs": inputs,
            "watch": {name: signature(name, path) for name, path in step.watch.items()},
        }
        identity = Identity(sha256_hex(canonical(parts)), parts, groups)
        self.identities[step.id] = identity
        return identity

    def is_group(self, source: Input) -> bool:
        return source.output.endswith("*") or source.step in self.items

    def group(self, source: Input) -> Iterator[tuple[str, str, Output]]:
        """(name in the group, producing step, output) of a port that reads many."""
        if source.step in self.items:
            for item, id_ in self.items[source.step]:
                for name, output in _matching(self.records[id_], source.output):
                    yield f"{item}/{name}", id_, output
        else:
            for name, output in _matching(self.records[source.step], source.output):
                yield name, source.step, output

    def _output(self, source: Input) -> Output:
        outputs = self.records[source.step].outputs
        if source.output not in outputs:
            known = ", ".join(list(outputs)[:8])
            raise StepError(f"{self.steps[source.step].name} made no {source.output!r}; it made: {known or 'nothing'}")
        return outputs[source.output]

    # What a running step gets

    def files(self, step: Step) -> dict[str, File | Mapping[str, File]]:
        files: dict[str, File | Mapping[str, File]] = {}
        for port, source in step.inputs.items():
            if self.is_group(source):
                files[port] = {name: self._locate(id_, output) for name, id_, output in self.group(source)}
            else:
                files[port] = self._locate(source.step, self._output(source))
        if step.watch:
            watch = self.identities[step.id].parts["watch"]
            files["watch"] = {name: File(Path(path), "", watch[name][2]) for name, path in step.watch.items()}
        return files

    def input_bytes(self, step: Step) -> int:
        """Bytes of all inputs that other steps made; files that a step watches are not counted."""
        total = 0
        for source in step.inputs.values():
            outputs = [each for _, _, each in self.group(source)] if self.is_group(source) else [self._output(source)]
            total += sum(output.nbytes for output in outputs)
        return total

    def _locate(self, id_: str, output: Output) -> File:
        kind, _, name = output.of.partition(":")
        if kind == "watch":
            return File(Path(self.steps[id_].watch[name]), output.digest, output.nbytes, output.offset)
        whole = self.records[id_].outputs[name] if kind == "output" else output
        return File(self.store.path(whole.digest), output.digest, output.nbytes, output.offset)

    def watched(self, step: Step) -> list[tuple[str, str, list[int]]]:
        """(name, path, signature when it was examined) of each file outside the store that the step reads."""
        watched = {(step.id, name) for name in step.watch}
        for source in step.inputs.values():
            if not self.is_group(source):
                pairs = [(source.step, self._output(source))]
            else:
                pairs = [(id_, output) for _, id_, output in self.group(source)]
            watched |= {(id_, output.of[6:]) for id_, output in pairs if output.of.startswith("watch:")}
        return [
            (name, self.steps[id_].watch[name], self.identities[id_].parts["watch"][name])
            for id_, name in sorted(watched)
        ]

    # Reasons

    def last_result_of(self, step: Step) -> LastResult | None:
        """The last result of this step under the first goal that has one."""
        goals = self._goals.get(step.id, ())
        for goal in (*goals, *(_VARIANT.sub("", goal) for goal in goals)):  # what a changed key is compared with
            if goal not in self._last_results:
                self._last_results[goal] = self.store.last_results(goal)
            if place := self._last_results[goal].get(step.name):
                return place
        return None

    def reason(self, step: Step, identity: Identity, lookup: Lookup) -> str:
        """Why the step has to run, in words."""
        if lookup.problem in _PROBLEMS:
            return _PROBLEMS[lookup.problem].format(lookup.detail)
        place = self.last_result_of(step)
        if place is None:
            return "never built"
        if place.key == identity.key:
            return "result missing from the store"
        last = self.store.load(place.key).record
        if last is None or not last.parts.keys() >= identity.parts.keys():
            return "changed since a build whose record is gone"
        from llm_build.core.reason import summarize_differences  # only a stale step needs words

        return summarize_differences(self.differences(step, identity, last))

    def differences(self, step: Step, identity: Identity, last: Record) -> list[Difference]:
        from llm_build.core.reason import KeyState, differences

        labels = {port: self._label(source) for port, source in step.inputs.items()}
        last_code = known_modules(self.store, last.parts["code"])
        now_code = self.sources.code(step.function, step.code)[1]
        old, new = KeyState(last.parts, last.groups, last_code), KeyState(identity.parts, identity.groups, now_code)
        return differences(old, new, labels, step.recipe_keys)

    def _label(self, source: Input) -> tuple[str, str]:
        """How a reason calls one output, and in a group the template that the entries' item names belong to."""
        template = self.steps[source.step].name if source.step in self.items else ""
        return source.output.replace("/", " ", 1), template

    def save_code_digests(self, step: Step) -> None:
        """Keep the module digests behind the fingerprint of a step that ran."""
        fingerprint, table = self.sources.code(step.function, step.code)
        if self.store.load_document(code_document(fingerprint)) is None:
            self.store.save_document(code_document(fingerprint), table)

    # The result

    def ids_of(self, goal: Goal) -> list[str]:
        """The goal's steps in display order, templates replaced by their items where these are known."""
        return expanded(goal.steps, self.items)

    def expanded_plan(self) -> Plan:
        """The plan with its templates replaced by their items (kept where these are not known)."""
        goals = tuple(goal._replace(steps=tuple(self.ids_of(goal))) for goal in self.plan.goals)
        return Plan({id_: step for id_, step in self.steps.items() if id_ not in self.items}, goals)


def expanded(ids: tuple[str, ...], items: Mapping[str, tuple[tuple[str, str], ...]]) -> list[str]:
    return [each for id_ in ids for each in ([step for _, step in items[id_]] if id_ in items else [id_])]


def _is_item(item: Json) -> bool:
    """Whether it is of the shape that items_of reads."""
    if not (isinstance(item, dict) and isinstance(item.get("name"), str) and isinstance(item.get("params"), dict)):
        return False
    inputs = item.get("inputs")
    return isinstance(inputs, dict) and all(
        isinstance(drawn, list) and 2 <= len(drawn) <= 3 and {*map(type, drawn)} == {str} for drawn in inputs.values()
    )


def items_of(template: Step, items: list[Json]) -> Iterator[Step]:
    """One step per item. Ports that items draw from, and the list itself, are used up by the expansion. An item's input
    is [port of the template, output], and the name of an item where that port reads another template."""
    used = {template.expand} | {port for item in items for port, *_ in item["inputs"].values()}
    kept = {port: source for port, source in template.inputs.items() if port not in used}
    for item in items:
        own = {port: _drawn(template, *source) for port, source in item["inputs"].items()}
        yield replace(
            template,
            id=f"{template.id}[{item['name']}]",
            name=f"{template.name}[{item['name']}]",
            params={**template.params, **item["params"]},
            inputs={**kept, **own},
            expand="",
        )


def _drawn(template: Step, port: str, output: str, item: str = "") -> Input:
    producer = template.inputs[port].step
    return Input(f"{producer}[{item}]" if item else producer, output)


def signature(name: str, path: str) -> list[int]:
    """What tells one state of a file from another without reading it: [device, inode, size, mtime_ns, ctime_ns]."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror} ({path})") from error
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def known_modules(store: Store, fingerprint: str) -> Mapping[str, str] | None:
    """What a fingerprint of an earlier build was made of, where this store has seen it."""
    document = store.load_document(code_document(fingerprint))
    known = isinstance(document, dict) and {*map(type, document.values())} <= {str}
    return document if known else None


def code_document(fingerprint: str) -> str:
    return "code/" + fingerprint.rpartition(":")[2]


def _matching(record: Record, pattern: str) -> Iterator[tuple[str, Output]]:
    if pattern == "*":
        yield from record.outputs.items()
    elif pattern.endswith("*"):
        prefix = pattern[:-1]
        yield from ((name, output) for name, output in record.outputs.items() if name.startswith(prefix))
    elif pattern in record.outputs:
        yield pattern, record.outputs[pattern]


def examine(plan: Plan, store: Store, sources: Sources | None = None) -> dict[str, StepStatus]:
    """A verdict per step id, in the order of the goals; runs nothing and repairs nothing."""
    state = PlanState(plan, store, sources or FileSources(store))
    verdicts = examine_all(state)
    state.sources.save()
    ids = dict.fromkeys(id_ for goal in plan.goals for id_ in state.ids_of(goal))
    ids.update(dict.fromkeys(id_ for id_ in verdicts if id_ not in state.items))
    return {id_: verdicts[id_] for id_ in ids}


@contextmanager
def paused_garbage_collection() -> Iterator[None]:
    """Without the cyclic garbage collector: thousands of records are made that all stay, and every pass over them would
    take longer than the one before."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def examine_all(state: PlanState) -> dict[str, StepStatus]:
    verdicts: dict[str, StepStatus] = {}
    queue = state.ready_steps()
    with paused_garbage_collection():
        for id_ in queue:  # grows while it is walked
            step = state.steps[id_]
            if step.expand:
                queue += state.expand(id_)
                continue
            verdicts[id_] = verdict = examine_step(state, step)
            if verdict.record:
                queue += state.finish(id_, verdict.record)
    for id_, step in state.steps.items():
        if id_ not in verdicts and id_ not in state.items:
            on = tuple(state.steps[producer].name for producer in sorted(state.missing[id_]))
            more = f" and {len(on) - 3} more" if len(on) > 3 else ""
            verdicts[id_] = StepStatus(step, "blocked", f"waits for {', '.join(on[:3])}{more}", on=on)
    return verdicts


def examine_step(state: PlanState, step: Step, repair: bool = False) -> StepStatus:
    identity = state.identify(step)
    lookup = state.store.load(identity.key, repair)
    if lookup.record:
        return StepStatus(step, "fresh", "up to date", identity.key, lookup.record)
    return StepStatus(step, "stale", state.reason(step, identity, lookup), identity.key)
