"""gc of a shared store: by age and by roots, and never what a young upload is about to refer to."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from llm_build.core.digest import digest_of_bytes
from llm_build.core.errors import UserError
from llm_build.core.record import Output, Record
from llm_build.core.seals import Seals
from llm_build.remote.bucket import Bucket
from llm_build.remote.gc import gc
from llm_build.remote.layout import blob_name, manifest, record_name, upload_name
from llm_build.remote.location import Location
from tests.remote.conftest import Bucket as S3
from tests.remote.conftest import Folder, Machines
from tests.remote.machine import faults_of

DAY_S = 24 * 3600.0


def age(folder: Folder, days: float, *parts: str) -> None:
    """Make objects whose name has one of ``parts`` so old."""
    then = time.time() - days * DAY_S
    for path in folder.root.rglob("*"):
        if path.is_file() and any(part in path.as_posix() for part in parts):
            os.utime(path, (then, then))


def keys(folder: Folder) -> set[str]:
    return {Path(name).stem for name in folder.objects() if name.startswith("records/")}


def test_by_age_and_by_roots(folder: Folder, neighbours: Machines):
    outcome = neighbours("first").build()
    bucket = Bucket(Location(folder.url))
    package, before = outcome.records["p"].key, folder.objects()
    age(folder, 40, "records/", "blobs/")
    assert gc(bucket, 4, None) == ((), 0, 0, 12370)  # nothing is loose, and no age was given
    would = gc(bucket, 4, 30 * DAY_S, {package})
    assert package not in would.records
    assert len(would.records) == 7
    assert folder.objects() == before
    assert gc(bucket, 4, 30 * DAY_S, {package}, dry_run=False) == would
    assert keys(folder) == {package}
    assert not faults_of(folder.objects())
    second = neighbours("second")
    assert "package" not in second.ran()
    assert not second.warnings
    age(folder, 40, package)
    gc(bucket, 4, 30 * DAY_S, dry_run=False)
    assert package not in keys(folder)
    assert not faults_of(folder.objects())


def test_a_push_renews(folder: Folder, neighbours: Machines):
    machine = neighbours("first")
    outcome = machine.build()
    age(folder, 40, "records/", "blobs/")
    store = machine.open()
    store.offer(outcome.records["p"])
    store.drain(lambda _: None)
    gc(Bucket(machine.location), 4, 30 * DAY_S, dry_run=False)
    assert keys(folder) == {outcome.records["p"].key}
    assert not faults_of(folder.objects())


@pytest.mark.parametrize("old", [False, True])
def test_an_upload_keeps_what_it_is_about_to_refer_to(old: bool, folder: Folder, neighbours: Machines):
    """An old blob that nothing names, and an upload that has found it and has yet to write its manifest."""
    neighbours("first").build()
    data, key = b"from an earlier build", "ab" * 32
    digest = digest_of_bytes(data)
    bucket = Bucket(Location(folder.url))
    bucket.write(blob_name(digest), data)
    bucket.write(f"blobs/00/young.{'0' * 12}.part", b"half")
    age(folder, 2, "blobs/")
    record = Record(key, {"watch": {}}, {"out": Output(digest, len(data))})
    bucket.write(upload_name(key), manifest(record, Seals()))
    if old:  # it was killed long ago
        age(folder, 2, "uploads/")
    freed = gc(bucket, 4, dry_run=False)
    assert freed.blobs == (1 if old else 0) + 1
    bucket.write(record_name(key), manifest(record, Seals()))
    assert bool(faults_of(folder.objects())) == old
    assert bool(bucket.entries("uploads")) != old


def test_an_upload_waits_while_blobs_are_removed(folder: Folder, neighbours: Machines):
    machine = neighbours("first")
    record = machine.build().records["q[0]"]
    bucket, store = Bucket(machine.location), machine.open()
    bucket.write("GC", str(time.time()).encode())
    with pytest.raises(UserError, match="another gc is at work"):
        gc(bucket, 4, dry_run=False)
    folder.remove(record_name(record.key))
    store.offer(record)
    for _ in range(3):
        store.poll_events(0.1)
    assert upload_name(record.key) in folder.objects()
    assert record_name(record.key) not in folder.objects()
    bucket.write("GC", str(time.time() - 3600).encode())  # it died
    store.drain(lambda _: None)
    assert record_name(record.key) in folder.objects()
    gc(bucket, 4, dry_run=False)
    assert "GC" not in folder.objects()


def test_on_s3(bucket: S3, machines: Machines):
    machine = machines("first")
    machine.build()
    bucket.put("blobs/00/00", b"loose")
    there = Bucket(machine.location)
    assert gc(there, 4, dry_run=False).blobs == 0  # it is young
    freed = gc(there, 4, dry_run=False, grace_s=-60.0)
    assert (freed.blobs, freed.nbytes) == (1, 5)
    freed = gc(there, 4, max_age_s=-60.0, dry_run=False, grace_s=-60.0)
    assert len(freed.records) == 8
    assert list(bucket.objects()) == ["VERSION"]
