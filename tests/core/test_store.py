"""The store on disk: what it forgives, what it finds, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from llm_build.core import disk, lock
from llm_build.core.check import Fault, check
from llm_build.core.errors import StepError, UserError
from llm_build.core.filestore import FileStore, open_store
from llm_build.core.gc import gc
from llm_build.core.memo import Memo
from llm_build.core.record import LastResult, Output, Record

KEY = "ab" * 32
OTHER = "cd" * 32
PARTS = {"function": "f", "code": "", "tools": {}, "params": {}, "inputs": {}, "watch": {}}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    store = open_store(tmp_path / "store")
    store.start()
    yield store
    store.stop()


def put(store: FileStore, key: str, **contents: bytes) -> Record:
    """A record with these outputs."""
    scratch = store.scratch()
    for name, data in contents.items():
        (scratch / name).write_bytes(data)
    outputs = store.ingest({name: scratch / name for name in contents})
    store.discard(scratch)
    record = Record(key, PARTS, outputs, facts={"n": 1}, warnings=("w",), started=1.5, seconds=2.5, nbytes=3)
    store.commit(record)
    return record


def manifest(store: FileStore, key: str = KEY) -> Path:
    return store.root / "records" / key[:2] / f"{key}.json"


def overwrite(path: Path, data: bytes, keep_mtime: bool = False) -> None:
    before = path.stat()
    path.chmod(0o644)
    path.write_bytes(data)
    if keep_mtime:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_what_is_put_comes_back(store: FileStore) -> None:
    record = put(store, KEY, a=b"12345", b=b"")
    assert store.load(KEY).record == record
    blob = store.path(record.outputs["a"].digest)
    assert (store.read(record.outputs["a"].digest), blob.stat().st_mode & 0o777) == (b"12345", 0o444)
    assert blob.stat().st_nlink == 1
    assert json.loads(manifest(store).read_text().splitlines()[0])["outputs"]["a"]["nbytes"] == 5


def test_nothing_is_created_before_something_is_written(tmp_path: Path) -> None:
    store = open_store(tmp_path / "new")
    assert store.load(KEY).problem == "absent"
    assert store.last_results("goal") == {}
    store.save_document("cache/meanings", {})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text", "other"])
def test_a_damaged_manifest_counts_as_absent(store: FileStore, damage: str) -> None:
    put(store, KEY, a=b"1")
    put(store, OTHER, a=b"1")
    path = manifest(store)
    raw = bytearray(path.read_bytes())
    if damage == "flip":
        raw[len(raw) // 2] ^= 1
    texts = {
        "truncate": raw[:-20],
        "flip": raw,
        "empty": b"",
        "text": b"{}\n",
        "other": manifest(store, OTHER).read_bytes(),
    }
    path.write_bytes(texts[damage])
    assert store.load(KEY).problem == "garbage"
    assert path.exists()
    assert store.load(KEY, repair=True).problem == "garbage"
    assert not path.exists()
    assert store.load(KEY).problem == "absent"


def test_a_damaged_blob_is_named_and_dropped(store: FileStore) -> None:
    record = put(store, KEY, a=b"12345", b=b"6")
    blob = store.path(record.outputs["a"].digest)
    for data in (b"12", b"1234x"):
        overwrite(blob, data)
        found = store.load(KEY)
        assert (found.record, found.problem) == (None, "damaged")
        assert found.detail == f"a ({record.outputs['a'].digest[:15]})"
        assert blob.exists()
    store.load(KEY, repair=True)
    assert not blob.exists()
    assert store.load(KEY)._replace(record=None) == (None, "missing", "a")


def test_a_touched_blob_is_hashed_once_and_its_mtime_updated(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_build.core.memo.RACY_NS", -(10**18))
    record = put(store, KEY, a=b"12345")
    blob = store.path(record.outputs["a"].digest)
    os.utime(blob, ns=(5, 5))
    assert store.load(KEY).record == record._replace(outputs={"a": record.outputs["a"]._replace(mtime_ns=5)})
    monkeypatch.setattr("llm_build.core.filestore.digest_of_file", None)
    assert store.load(KEY, repair=True).record
    assert FileStore(store.root).load(KEY).record
    assert json.loads(manifest(store).read_text().splitlines()[0])["outputs"]["a"]["mtime_ns"] == 5


def test_silent_damage_is_found_by_check_and_by_making_the_result_again(store: FileStore) -> None:
    record = put(store, KEY, a=b"12345")
    blob = store.path(record.outputs["a"].digest)
    overwrite(blob, b"1234x", keep_mtime=True)
    assert store.load(KEY).record
    found = check(store)
    assert (found.faults, found.blobs, found.records) == ((Fault("damaged", blob.name, (f"result {KEY[:12]}",)),), 1, 1)
    again = put(store, OTHER, a=b"12345")
    assert blob.read_bytes() == b"12345"
    assert check(store).whole
    assert store.load(KEY).record
    assert again.outputs["a"].digest == record.outputs["a"].digest


def test_check_names_each_fault_with_its_steps_and_repairs(store: FileStore) -> None:
    record, other, third = put(store, KEY, a=b"12345"), put(store, OTHER, b=b"6"), put(store, KEY[::-1], c=b"789")
    store.save_last_results(
        "goal", {"lower": LastResult(KEY, 1.0, 1.0), "fetch": LastResult(OTHER, 1.0, 1.0)}, whole=True
    )
    store.save_last_results("twin", {"lower": LastResult(KEY, 1.0, 1.0)}, whole=True)
    lost = store.path(third.outputs["c"].digest)
    damaged = store.path(record.outputs["a"].digest)
    overwrite(damaged, b"x", keep_mtime=True)
    manifest(store, OTHER).write_bytes(b"x")
    lost.unlink()
    seen: list[tuple[int, int]] = []
    for repair in (False, True):
        found = check(store, lambda done, total: seen.append((done, total)), repair)
        assert (found.orphans, found.whole, seen[-1]) == (1, False, (2, 2))  # without its record "6" is nobody's
        assert found.faults == (
            Fault("damaged", damaged.name, ("goal: lower", "twin: lower")),
            Fault("missing", lost.name, (f"result {KEY[::-1][:12]}",)),
            Fault("garbage", OTHER, ("goal: fetch",)),
        )
    again = check(store)
    assert (again.faults, again.records, again.blobs) == ((), 0, 1)
    assert store.path(other.outputs["b"].digest).exists()


def test_check_tells_what_killed_builds_left_and_repair_clears_it(store: FileStore) -> None:
    put(store, KEY, a=b"1")
    dead = store.root / "tmp" / "123-abc"
    (dead / "step-1").mkdir(parents=True)
    (store.root / "locks" / OTHER).write_text("123")
    mine = store.lock(KEY)
    assert mine
    assert check(store).leftovers == ("tmp/123-abc", f"locks/{OTHER}")
    assert check(store, repair=True).leftovers == ()
    assert not dead.exists()
    assert store.lock(KEY) is None
    mine.release()


def test_a_result_that_others_could_change_is_copied(store: FileStore, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"1")
    scratch = store.scratch()
    os.link(tmp_path / "mine", scratch / "hard")
    (scratch / "soft").symlink_to(tmp_path / "mine")
    outputs = store.ingest({"hard": scratch / "hard", "soft": scratch / "soft"})
    (tmp_path / "mine").write_bytes(b"2")
    assert {store.read(output.digest) for output in outputs.values()} == {b"1"}
    assert (tmp_path / "mine").stat().st_mode & 0o200


def test_places_merge_and_write_only_when_something_moved(store: FileStore) -> None:
    now = time.time()
    store.save_last_results("a/b", {"x": LastResult("1", now, 1.0), "y": LastResult("2", now, 1.0)}, whole=True)
    path = next((store.root / "places").iterdir())
    before = path.stat().st_mtime_ns
    store.save_last_results("a/b", {"x": LastResult("1", now + 5, 1.0)}, whole=False)
    assert path.stat().st_mtime_ns == before
    store.save_last_results("a/b", {"x": LastResult("3", now, 1.0)}, whole=False)
    assert {name: place.key for name, place in store.last_results("a/b").items()} == {"x": "3", "y": "2"}
    store.save_last_results("a/b", {"x": LastResult("3", now + 2 * 24 * 3600, 1.0)}, whole=True)
    assert store.last_results("a/b") == {"x": LastResult("3", now + 2 * 24 * 3600, 1.0)}
    path.write_text("{")
    assert store.last_results("a/b") == {}


def test_layout_version_and_foreign_folders(tmp_path: Path) -> None:
    (tmp_path / "VERSION").write_text("2\n")
    with pytest.raises(UserError, match=r"has layout '2', this version reads layout '1'"):
        open_store(tmp_path)
    (tmp_path / "VERSION").rename(tmp_path / "thesis.tex")
    with pytest.raises(UserError, match=r"holds other files \(thesis.tex\) and no store"):
        open_store(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        open_store(tmp_path / "thesis.tex")


@contextmanager
def unprivileged() -> Iterator[Path]:
    """A folder that this process may read and not write (root becomes nobody for the while)."""
    folder = Path(tempfile.mkdtemp())
    before = os.geteuid()
    try:
        folder.chmod(0o555)
        if before == 0:
            os.seteuid(65534)
        yield folder
    finally:
        os.seteuid(before)
        folder.chmod(0o755)
        shutil.rmtree(folder)


def test_a_store_that_cannot_be_written() -> None:
    with unprivileged() as folder:
        store = open_store(folder / "store")
        with pytest.raises(UserError, match=r"cannot use the store: no permission to write to") as caught:
            store.start()
        assert "store.path=" in caught.value.hint


def test_a_store_that_can_only_be_read_still_answers(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp())
    store = open_store(folder / "store")
    store.start()
    record = put(store, KEY, a=b"1")
    store.stop()
    os.utime(store.path(record.outputs["a"].digest), ns=(5, 5))
    before = os.geteuid()
    try:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if before == 0:
            os.seteuid(65534)
        reader = open_store(folder / "store", "all")  # another user's secret cannot be read
        assert reader.load(KEY, repair=True).record
        reader.save_last_results("goal", {"x": LastResult(KEY, 0.0, 0.0)}, whole=True)
        assert reader.last_results("goal") == {}
    finally:
        os.seteuid(before)
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_a_full_disk_leaves_no_record(store: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk.os, "write", full)
    with pytest.raises(StepError, match=r"cannot write abab.*the disk is full \(\d+ MB free") as caught:
        store.commit(Record(KEY, PARTS, {}))
    assert "build gc" in caught.value.hint
    assert store.load(KEY).problem == "absent"
    assert not list(manifest(store).parent.glob("*"))


def test_a_lock_is_held_by_one_and_goes_with_its_file(tmp_path: Path) -> None:
    first = lock.try_lock(tmp_path / "key")
    assert first
    assert lock.try_lock(tmp_path / "key") is None
    assert lock.holder(tmp_path / "key") == os.getpid()
    first.release()
    assert not (tmp_path / "key").exists()
    assert lock.holder(tmp_path / "key") == 0
    again = lock.try_lock(tmp_path / "key")
    assert again
    again.release()


def test_leftovers_of_dead_builds_are_cleared_and_those_of_living_ones_kept(store: FileStore) -> None:
    living = store.scratch()
    dead = store.root / "tmp" / "999-dead"
    (dead / "step-1").mkdir(parents=True)
    (dead / "alive").write_bytes(b"")
    half = store.root / "tmp" / ".half"
    half.mkdir()
    other = FileStore(store.root)
    other.start()
    assert (living.exists(), dead.exists(), half.exists()) == (True, False, True)
    os.utime(half, (0, 0))
    other.stop()
    other.start()
    other.stop()
    assert (living.exists(), half.exists()) == (True, False)


def test_a_build_with_nothing_to_do_clears_up_after_a_killed_one(store: FileStore) -> None:
    store.stop()
    dead = store.root / "tmp" / "999-dead"
    dead.mkdir()
    (dead / "alive").write_bytes(b"")
    (store.root / "locks" / KEY).write_text("999")
    held = lock.try_lock(store.root / "locks" / OTHER)
    assert held
    FileStore(store.root).stop()
    assert (dead.exists(), set(os.listdir(store.root / "locks"))) == (False, {"builds", OTHER})
    held.release()


def test_files_are_replaced_never_written_over(tmp_path: Path) -> None:
    target = tmp_path / "file"
    disk.write_atomic(target, b"old", tmp_path / "new", durable=True)
    with open(target, "rb") as reader:
        disk.write_atomic(target, b"new", tmp_path / "new", durable=False)
        assert (reader.read(), target.read_bytes(), (tmp_path / "new").exists()) == (b"old", b"new", False)


def test_memo_forgives_torn_lines(tmp_path: Path) -> None:
    path = tmp_path / "memo.log"
    Memo(path).put("a", "1")
    with open(path, "a") as file:
        file.write('\n["b", "2')
    Memo(path).put("c", "3")
    with open(path, "a") as file:
        file.write('\n["d"]\n7\n["e", 5]')
    memo = Memo(path)
    assert [memo.get(key) for key in "abcde"] == ["1", None, "3", None, None]


def test_memo_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_build.core.memo.COMPACT_FROM_LINES", 10)
    for index in range(30):
        Memo(tmp_path / "memo.log").put(str(index), "x")
    assert len((tmp_path / "memo.log").read_text().splitlines()) <= 12
    assert Memo(tmp_path / "memo.log").get("29") == "x"


# gc


def age(store: FileStore, key: str, seconds: float) -> None:
    old = time.time() - seconds
    os.utime(manifest(store, key), (old, old))


def test_gc_by_age_spares_what_a_place_uses(store: FileStore) -> None:
    put(store, KEY, a=b"12345", shared=b"7")
    put(store, OTHER, b=b"12", shared=b"7")
    for key in (KEY, OTHER):
        age(store, key, 1000)
    store.stop()
    store.save_last_results("goal", {"x": LastResult(OTHER, time.time(), 0.0)}, whole=True)
    dry = gc(store, max_age_s=500)
    assert (dry.records, dry.blobs, dry.nbytes, dry.kept_nbytes) == ((KEY,), 1, 5, 3)
    assert store.load(KEY).record
    assert gc(store, max_age_s=500, dry_run=False) == dry
    assert (store.load(KEY).problem, store.load(OTHER).problem) == ("absent", "")
    assert gc(store, max_age_s=500).blobs == 0


def test_gc_by_size_frees_the_longest_unused_first(store: FileStore) -> None:
    keys = [f"{index:02d}" * 32 for index in range(4)]
    for index, key in enumerate(keys):
        put(store, key, a=bytes([index]) * 100)
        age(store, key, 100 * (4 - index))
    store.stop()
    store.save_last_results("goal", {"x": LastResult(keys[0], time.time(), 0.0)}, whole=True)
    freed = gc(store, max_bytes=250, roots=[keys[1]], dry_run=False)
    assert (freed.records, freed.nbytes, freed.kept_nbytes) == ((keys[2], keys[3]), 200, 200)
    assert [store.load(key).problem for key in keys] == ["", "", "absent", "absent"]
    assert gc(store, max_bytes=0, dry_run=False).records == (keys[1], "goal: x")


def test_gc_frees_orphans_and_garbage_and_says_what_stays_linked(store: FileStore, tmp_path: Path) -> None:
    record = put(store, KEY, a=b"12345")
    put(store, OTHER, b=b"12")
    manifest(store).unlink()
    manifest(store, OTHER).write_bytes(b"garbage")
    os.link(store.path(record.outputs["a"].digest), tmp_path / "exported")
    store.stop()
    freed = gc(store, max_age_s=10, dry_run=False)
    assert (freed.blobs, freed.nbytes, freed.linked_nbytes) == (2, 7, 5)
    assert (tmp_path / "exported").read_bytes() == b"12345"


def test_gc_keeps_away_from_a_running_build(store: FileStore) -> None:
    put(store, KEY, a=b"1")
    with pytest.raises(UserError, match="a build is using the store"):
        gc(FileStore(store.root), max_age_s=0, dry_run=False)
    assert gc(FileStore(store.root), max_age_s=0).blobs == 1
    assert store.load(KEY).record


def test_a_forgotten_result_is_absent_and_its_blobs_go_with_the_next_gc(store: FileStore) -> None:
    put(store, KEY, x=b"one")
    store.forget(KEY)
    store.forget(KEY)
    assert store.load(KEY).problem == "absent"
    assert gc(store).blobs == 1


def test_gc_of_nothing(tmp_path: Path) -> None:
    assert gc(FileStore(tmp_path / "none"), max_age_s=0, dry_run=False) == ((), 0, 0, 0, 0)
    assert not (tmp_path / "none").exists()


def test_outputs_that_are_slices_need_no_blob(store: FileStore) -> None:
    parts = {**PARTS, "watch": {"f": [1, 2, 3, 4, 5]}}
    store.commit(Record(KEY, parts, {"t": Output("blake3:00", 5, 0, "watch:f", 3)}))
    assert store.load(KEY).record
    assert check(store).whole
