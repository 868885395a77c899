"""What one machine made, others download: over S3, verified, in parallel, and without a request for what is there."""

from __future__ import annotations

import subprocess
import sys

from llm_build.core.events import Progress
from llm_build.remote.examine import examine_with_remote
from tests.conftest import ROOT
from tests.core import toy
from tests.remote.conftest import Bucket, Folder, Machines
from tests.remote.machine import ALL, digests, faults_of
from tests.remote.proxy import Fault


def test_another_machine_downloads_everything(bucket: Bucket, machines: Machines):
    first, second = machines("first"), machines("second", mode="readonly")
    made = first.build()
    objects = bucket.objects()
    assert not faults_of(objects)
    assert {name.partition("/")[0] for name in objects} == {"VERSION", "blobs", "records"}
    assert not any(str(first.root).encode() in data for data in objects.values())
    bucket.proxy.requests.clear()
    brought = second.build()
    assert {done.status for done in brought.steps.values()} == {"fresh"}
    assert digests(brought) == digests(made)
    assert not [request for request in bucket.proxy.requests if not request.startswith("GET")]
    assert not second.warnings
    last = [event for event in second.events if isinstance(event, Progress) and event.name == "download"][-1]
    assert last.done == last.total == sum(len(data) for name, data in objects.items() if name.startswith("blobs/"))


def test_a_result_that_is_here_costs_no_request(bucket: Bucket, machines: Machines):
    machines("first").build()
    bucket.proxy.requests.clear()
    again = machines("first")
    assert again.ran() == set()
    assert bucket.proxy.requests == []
    assert again.ran(most=10**8) == {"check"}  # only what is new is asked for and uploaded
    asked = {request.partition("shared/")[2].partition("/")[0] for request in bucket.proxy.requests}
    assert asked <= {"VERSION", "GC", "records", "uploads", "blobs"}
    assert sum("/blobs/" in request for request in bucket.proxy.requests) == 0


def test_a_build_with_nothing_to_do_loads_no_fsspec(folder: Folder, neighbours: Machines):
    machine = neighbours("first")
    machine.build()
    code = (
        "import sys; from pathlib import Path; from tests.remote.machine import Machine; "
        f"ran = Machine(Path({str(machine.root)!r}), Path({str(machine.source)!r}), {folder.url!r}).ran(); "
        "print(ran, [name for name in ('fsspec', 's3fs', 'asyncio') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set() []"


def test_readonly_uploads_nothing(folder: Folder, neighbours: Machines):
    assert neighbours("laptop", mode="readonly").ran() == ALL
    assert folder.objects() == {}


def test_keys_are_looked_up_side_by_side(bucket: Bucket, machines: Machines):
    bucket.proxy.faults.append(Fault("slow", "/records/", seconds=0.1))
    store = machines("second", transfers=6).open()
    keys = [f"{number:064x}" for number in range(12)]
    assert store.records(keys) == {}
    assert bucket.proxy.most == 6
    assert sum("/records/" in request for request in bucket.proxy.requests) == 12


def test_a_plan_counts_what_is_there_and_brings_no_results(folder: Folder, neighbours: Machines):
    first, second = neighbours("first"), neighbours("second")
    first.build()
    plan = toy.plan(first.source)
    verdicts = examine_with_remote(plan, second.open())
    assert {verdict.step.name: verdict.reason for verdict in verdicts.values()} == dict.fromkeys(
        ALL, "in the shared store"
    )
    assert not list((second.root / "records").rglob("*.json"))
    for name in folder.objects():
        if name.startswith("records/"):
            folder.remove(name)
    assert {verdict.status for verdict in examine_with_remote(plan, second.open()).values()} == {"stale", "blocked"}


def test_a_folder_does_as_well_as_s3(folder: Folder, neighbours: Machines):
    made = neighbours("first").build()
    objects = folder.objects()
    assert not faults_of(objects)
    assert not [name for name in objects if name.endswith(".part")]
    assert digests(made) == digests(neighbours("second").build())
    assert neighbours("third").ran() == set()


def test_blobs_go_and_come_for_an_executor(neighbours: Machines):
    first, second = neighbours("first"), neighbours("second")
    record = first.build().records["p"]
    other = second.open()
    brought = other.download(record.outputs)
    other.stop()
    assert {name: output.digest for name, output in brought.items()} == {
        name: output.digest for name, output in record.outputs.items()
    }
    assert all(other.path(output.digest).stat().st_mtime_ns == output.mtime_ns for output in brought.values())
    other.upload(brought)
