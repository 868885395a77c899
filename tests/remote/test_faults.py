"""Whatever happens to the shared store, a build ends right, says what was wrong, and leaves the store valid."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time

import pytest

from llm_build.core.errors import StepError
from tests.conftest import ROOT
from tests.remote.conftest import Bucket, Folder, Machines
from tests.remote.machine import ALL, digests, faults_of
from tests.remote.proxy import Fault


def flip(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("damage", [flip, half, None])
@pytest.mark.parametrize("kind", ["blobs", "records"])
def test_a_damaged_object_is_reported_rebuilt_and_replaced(damage, kind, folder: Folder, neighbours: Machines):
    made = neighbours("first").build()
    shard = made.records["q[2]"]
    hex_ = shard.outputs["shard_2.bin"].digest.partition(":")[2]
    name = {"blobs": f"blobs/{hex_[:2]}/{hex_}", "records": f"records/{shard.key[:2]}/{shard.key}.json"}[kind]
    good = folder.objects()[name]
    if damage:
        folder.put(name, damage(good))
    else:
        folder.remove(name)
    second = neighbours("second")
    outcome = second.build()
    assert {done.name for done in outcome.steps.values() if done.status == "ran"} == {"quantize[2]"}
    assert digests(outcome) == digests(made)
    if damage or kind == "blobs":  # a manifest that is gone is no fault
        (said,) = second.warnings
        assert name in said
        assert ("is damaged" if damage else "is missing") in said
    assert not faults_of(folder.objects())
    assert neighbours("third").ran() == set()


def test_faults_that_pass_are_not_heard_of(bucket: Bucket, machines: Machines):
    made = machines("first").build()
    faults = {"drop": "q[0]", "truncate": "q[1]", "flip": "q[2]", "503": "q[3]"}
    for what, id_ in faults.items():
        (output,) = made.records[id_].outputs.values()
        bucket.proxy.faults.append(Fault(what, output.digest.partition(":")[2], times=1))
    second = machines("second")
    assert second.ran() == set()
    assert second.warnings == []
    assert not any(fault.times for fault in bucket.proxy.faults)


@pytest.mark.parametrize(
    "fault", [Fault("drop", "/blobs/"), Fault("slow", "/blobs/", seconds=9.0), Fault("slow", "/VERSION", seconds=9.0)]
)
def test_a_store_that_is_away_is_given_up_once(fault, bucket: Bucket, machines: Machines):
    if "VERSION" not in fault.part:
        machines("first").build()
    bucket.proxy.faults.append(fault)
    second, began = machines("second", timeout_s=2.0), time.monotonic()
    assert "package" in second.ran()
    (said,) = second.warnings
    assert f"the shared store {bucket.url} does not answer" in said
    assert said.endswith("going on without it")
    assert time.monotonic() - began < 60
    assert not faults_of(bucket.objects())


def test_nobody_there(machines: Machines):
    machine = machines("first", options={"endpoint_url": "http://127.0.0.1:1"})
    assert machine.ran() == ALL
    assert len(machine.warnings) == 1
    assert "does not answer" in machine.warnings[0]


def test_credentials_refused(bucket: Bucket, machines: Machines):
    bucket.proxy.faults += [Fault("403"), Fault("403", method="HEAD"), Fault("403", method="PUT")]
    machine = machines("first")
    assert machine.ran() == ALL
    (said,) = machine.warnings
    assert "refuses the credentials" in said
    assert "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE" in said
    assert "its-secret" not in said


def test_no_credentials(machines: Machines, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    machine = machines("first")
    assert machine.ran() == ALL
    (said,) = machine.warnings
    assert "refuses the credentials (NoCredentialsError" in said


def test_a_store_that_may_only_be_read(bucket: Bucket, machines: Machines):
    machines("first").build()
    bucket.proxy.faults.append(Fault("403", method="PUT"))
    machine = machines("second")
    assert machine.ran(most=10**8) == {"check"}
    (said,) = machine.warnings
    assert "cannot be written" in said
    assert "store.mode=readonly" in said


def test_no_such_bucket(machines: Machines):
    machine = machines("first", url="s3://there-is-none/x")
    assert machine.ran() == ALL
    (said,) = machine.warnings
    assert "cannot be written (there is no such bucket or folder)" in said


def test_a_store_of_another_layout(folder: Folder, neighbours: Machines):
    folder.root.mkdir()
    folder.put("VERSION", b"77\n")
    machine = neighbours("first")
    assert machine.ran() == ALL
    (said,) = machine.warnings
    assert "its layout is '77', this version reads '1'" in said
    assert list(folder.objects()) == ["VERSION"]


def test_an_executor_hears_what_is_wrong(folder: Folder, neighbours: Machines):
    record = neighbours("first").build().records["p"]
    for name, data in folder.objects().items():
        if name.startswith("blobs/"):
            folder.put(name, flip(data))
    with pytest.raises(StepError, match=r"is damaged in file://"):
        neighbours("second").open().download(record.outputs)


CHILD = """
import sys
from pathlib import Path
from tests.remote.machine import Machine
root, source, url, endpoint = sys.argv[1:]
Machine(Path(root), Path(source), url, options={"endpoint_url": endpoint}).build()
"""


def test_killed_while_it_uploads(bucket: Bucket, machines: Machines):
    """The twelfth upload never arrives: what is there is valid, and the next build completes it."""
    machine = machines("first")
    words = [str(machine.root), str(machine.source), bucket.url, bucket.options["endpoint_url"]]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *words], cwd=ROOT)
    bucket.proxy.faults += [
        Fault("slow", method="PUT", times=11),
        Fault("call", method="PUT", times=1, then=lambda: os.kill(child.pid, signal.SIGKILL)),
    ]
    assert child.wait(30) == -signal.SIGKILL
    assert not faults_of(bucket.objects())
    assert machines("second").ran() <= ALL
    assert not faults_of(bucket.objects())
    assert machines("third", mode="readonly").ran() == set()


def test_a_blob_that_is_damaged_here_is_downloaded_again(neighbours: Machines):
    machine = neighbours("first")
    (output,) = machine.build().records["q[1]"].outputs.values()
    blob = machine.store.path(output.digest)
    blob.chmod(0o644)
    blob.write_bytes(flip(blob.read_bytes()))
    assert machine.ran() == set()


def test_no_room_for_a_download(neighbours: Machines):
    neighbours("first").build()
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    second = neighbours("second")
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, most))  # a shard has 3,000 bytes
    try:
        with pytest.raises(StepError, match=r"cannot download blobs/\S+ \(shard_\d.bin\): the disk is full"):
            second.build()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert second.ran() == set()
