"""executor=ray on three nodes, each with a store of its own, and a shared store between them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_build.app.export import export
from llm_build.config.paths import store_path
from llm_build.core.errors import StepError, UserError
from llm_build.core.events import Event, Finished, Progress, Warned
from llm_build.core.filestore import FileStore, open_store
from llm_build.core.plan import Goal, Plan
from llm_build.core.run import Outcome, run
from llm_build.core.step import Resources
from llm_build.executors.local import LocalExecutor
from llm_build.executors.ray import RayExecutor
from llm_build.remote.location import Location
from llm_build.remote.store import open_shared
from tests.cluster.nodes import Nodes
from tests.conftest import bytes_of
from tests.core import toy
from tests.core.toy import step_of


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with Nodes(tmp_path_factory.mktemp("nodes"), nvcc=1.0) as three:
        yield three


def build(nodes: Nodes, folder: Path, plan: Plan, heard: list[Event] | None = None) -> Outcome:
    events = heard if heard is not None else []
    store = open_shared(folder / "store", Location(f"file://{folder}/remote"))
    with RayExecutor(store, nodes.address, store_path) as executor:
        outcome = run(plan, store, executor, events.append)
    if not outcome.failed:
        export(outcome, "toy", store, folder / "dist", {"model": "toy"})
    store.close()
    return outcome


def one(name: str, resources: Resources = Resources(), **params: object) -> Plan:  # noqa: B008
    step = step_of("m", "lower", f"tests.cluster.steps:{name}", params, resources=resources)
    return Plan({"m": step}, (Goal("toy", ("m",), "m"),))


def error_of(outcome: Outcome) -> StepError | UserError:
    (error,) = [done.error for done in outcome.steps.values() if done.error]
    assert isinstance(error, StepError | UserError)
    return error


class Killer(list[Event]):
    """Hears what happens, and kills a node when a step runs on each of the three."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.running: set[str] = set()

    def append(self, event: Event) -> None:
        super().append(event)
        if isinstance(event, Progress) and event.name.startswith("quantize"):
            self.running.add(event.name)
        if isinstance(event, Finished):
            self.running.discard(event.name)
        if len(self.running) == len(self.nodes.living) == 3:
            self.nodes.kill(0)


def test_a_node_is_killed_and_the_bytes_are_those_of_one_machine(nodes, tmp_path):
    plan = toy.plan(toy.write_source(tmp_path / "source.bin", 6), shards=6, sleep_s=2.4)
    alone = open_store(tmp_path / "alone" / "store")
    with LocalExecutor(alone) as executor:
        export(run(plan, alone, executor, lambda _: None), "toy", alone, tmp_path / "alone" / "dist", {"model": "toy"})

    heard = Killer(nodes)
    outcome = build(nodes, tmp_path, plan, heard)
    assert not outcome.failed
    assert bytes_of(tmp_path / "dist") == bytes_of(tmp_path / "alone" / "dist")
    moved = [event.message for event in heard if isinstance(event, Warned)]
    assert moved, heard
    assert all("started again (2 of at most 4 times)" in message for message in moved)


def test_results_go_through_the_stores_and_logs_come_back(nodes, tmp_path):
    heard: list[Event] = []
    outcome = build(nodes, tmp_path, one("where", Resources(custom={"nvcc": 0.001})), heard)
    assert [event.message for event in heard if isinstance(event, Warned)] == ["be careful"]
    ran_with = Path((tmp_path / "dist" / "store").read_text())
    assert ran_with in [nodes.store(number) for number in range(1, nodes.started + 1)]
    assert not list((ran_with / "tmp").iterdir())
    (log,) = (tmp_path / "store" / "logs").iterdir()
    assert log.read_text() == "said on the node\n"
    (record,) = outcome.records.values()
    name = record.outputs["store"].digest.rpartition(":")[2]
    for store in (ran_with, tmp_path / "store", tmp_path / "remote"):
        assert (store / "blobs" / name[:2] / name).is_file(), store


def test_a_step_that_fails_is_not_tried_elsewhere_and_one_that_is_lost_is_four_times(nodes, tmp_path):
    error = error_of(build(nodes, tmp_path, toy.single("raise")))
    assert "ZeroDivisionError: one by zero" in error.message
    lives = tmp_path / "lives"
    error = error_of(build(nodes, tmp_path, one("strand", lives=str(lives))))
    assert error.message.startswith("was lost 4 times; the last time: node ")
    assert "lost the process of this step" in error.message
    assert lives.read_text() == "xxxx"


def test_what_no_node_has_is_said_at_once(nodes, tmp_path):
    error = error_of(build(nodes, tmp_path, one("where", Resources(custom={"emcc": 0.001}))))
    assert error.message == "lower needs emcc, which no node of the Ray cluster declares"
    assert error.hint == (
        "start the nodes that have it with: ray start --resources='{\"emcc\": 1}' ..., or executor=local"
    )


def test_a_checkpoint_that_nodes_do_not_see_is_named(nodes, tmp_path, monkeypatch):
    """The nodes are on this machine: what they do not see is a file that changed after it was planned."""
    from llm_build.executors import ray as executor

    source = toy.write_source(tmp_path / "source.bin")
    request_for = executor.request_for
    monkeypatch.setattr(
        executor, "request_for", lambda *given: request_for(*given)._replace(outside={str(tmp_path / "gone"): (1, 1)})
    )
    error = error_of(build(nodes, tmp_path, toy.single("touch", watch=str(source))))
    assert error.message.endswith(f"{tmp_path / 'gone'} cannot be read: No such file or directory")
    assert "rsync -a" in error.hint
    assert error.exit_code == 2


def test_without_ray_the_way_to_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="needs the package ray") as caught:
        RayExecutor(FileStore(tmp_path), "local", store_path).capacity  # noqa: B018
    assert caught.value.hint == "pip install 'llm-build[ray]'"


@pytest.mark.parametrize(("address", "said"), [("127.0.0.1:1", "refused"), ("somewhere", "expected local, auto")])
def test_an_address_where_nothing_is(tmp_path, address, said):
    with pytest.raises(UserError, match=said) as caught:
        RayExecutor(FileStore(tmp_path), address, store_path).capacity  # noqa: B018
    assert f"executor.address={address}" in caught.value.message


def test_a_readonly_store_cannot_hold_what_nodes_make(tmp_path):
    store = open_shared(tmp_path / "store", Location(f"file://{tmp_path}/remote", "readonly"))
    with pytest.raises(UserError, match="allowed: write"):
        RayExecutor(store, "127.0.0.1:1", store_path).capacity  # noqa: B018
