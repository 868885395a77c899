"""What is no file in the place of one, anywhere in a store: it counts as damage, and a build goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llm_build.core import disk, lock
from llm_build.core.check import check
from llm_build.core.digest import digest_of_file, sha256_of_file
from llm_build.core.errors import BuildError
from llm_build.core.filestore import FileStore, open_store
from llm_build.core.fingerprint import FileSources
from llm_build.core.gc import gc
from llm_build.core.memo import Memo
from llm_build.core.small_file import hollow_bytes, open_file, read_small
from tests.core.test_store import KEY, manifest, put

CONTENT = b"content"


@pytest.fixture(autouse=True)
def at_once() -> Iterator[None]:
    start = time.monotonic()
    yield
    assert time.monotonic() - start < 10  # nothing waited for a pipe, or read a device to its end


def folder(path: Path) -> None:
    path.mkdir()
    (path / "inner").write_bytes(b"x")


def terabyte(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def link_to(target: str) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        path.symlink_to(target)

    make.__name__ = f"link to {target}"
    return make


def socket(path: Path) -> None:
    os.mknod(path, 0o140644)


def loop(path: Path) -> None:
    path.symlink_to(path.name)


ENTRIES = [folder, terabyte, os.mkfifo, socket, loop, link_to("/dev/zero"), link_to("nowhere"), link_to(".")]
entries = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.__name__)


def replace(path: Path, entry: Callable[[Path], None]) -> None:
    with suppress(FileNotFoundError):
        disk.remove_entry(path)
    entry(path)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FileStore]:
    store = open_store(tmp_path / "store")
    store.start()
    put(store, KEY, a=CONTENT)
    yield store
    store.stop()


def blob(store: FileStore) -> Path:
    record = store.load(KEY).record
    assert record
    return store.path(record.outputs["a"].digest)


def made_again(store: FileStore) -> bool:
    put(store, KEY, a=CONTENT)
    return store.load(KEY).record is not None and blob(store).read_bytes() == CONTENT


PLACES = (
    "records/zz",
    "records/ab/cd.json",
    "blobs/zz",
    "blobs/zz/x",
    "locks/x",
    "tmp/x",
    "places/x.json",
    "logs/x.log",
)


@entries
def test_in_the_place_of_a_blob(entry: Callable[[Path], None], store: FileStore):
    path = blob(store)
    replace(path, entry)
    assert store.load(KEY).record is None
    (fault,) = check(store).faults
    assert (fault.kind, fault.name) == ("damaged", path.name)
    assert made_again(store)


@entries
def test_check_repairs_it(entry: Callable[[Path], None], store: FileStore):
    replace(blob(store), entry)
    assert check(store, repair=True).faults
    assert not check(store).faults
    assert made_again(store)


@entries
def test_in_the_place_of_a_record(entry: Callable[[Path], None], store: FileStore):
    replace(manifest(store), entry)
    assert store.load(KEY).record is None
    assert [(fault.kind, fault.name) for fault in check(store).faults] in ([("garbage", KEY)], [])
    store.load(KEY, repair=True)
    assert made_again(store)


@entries
@pytest.mark.parametrize("where", PLACES)
def test_in_places_of_its_own(where: str, entry: Callable[[Path], None], store: FileStore):
    (store.root / where).parent.mkdir(exist_ok=True)
    replace(store.root / where, entry)
    check(store)
    store.stop()
    gc(store, max_age_s=1e9, dry_run=False)
    assert open_store(store.root).load(KEY).record


@entries
def test_in_the_place_of_a_lock(entry: Callable[[Path], None], tmp_path: Path):
    outside = tmp_path / "outside"
    outside.write_text("mine")
    replace(tmp_path / "lock", entry)
    assert not lock.is_held(tmp_path / "lock")
    assert lock.holder(tmp_path / "lock") == 0
    held = lock.try_lock(tmp_path / "lock")
    assert held
    assert lock.try_lock(tmp_path / "lock") is None
    held.release()
    (tmp_path / "lock").symlink_to(outside)
    held = lock.try_lock(tmp_path / "lock")
    assert held
    held.release()
    assert outside.read_text() == "mine", "a link out of the store is not written through"


@entries
def test_in_the_place_of_what_is_remembered(entry: Callable[[Path], None], tmp_path: Path):
    replace(tmp_path / "memo", entry)
    memo = Memo(tmp_path / "memo")
    memo.put("a", "b")
    assert memo.get("a") == "b"
    assert memo.get("c") is None


def test_what_is_remembered_goes_through_no_link(tmp_path: Path):
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "memo").symlink_to("outside")
    Memo(tmp_path / "memo").put("a", "b")
    assert (tmp_path / "outside").read_text() == "mine"


@entries
def test_in_the_place_of_the_layout_s_number(entry: Callable[[Path], None], store: FileStore):
    replace(store.root / "VERSION", entry)
    with pytest.raises(BuildError, match="store"):
        open_store(store.root)


@entries
def test_it_has_no_bytes_and_no_digest(entry: Callable[[Path], None], tmp_path: Path):
    replace(tmp_path / "x", entry)
    for read in (digest_of_file, sha256_of_file, disk.read_whole, read_small):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            read(tmp_path / "x")
        assert caught.value.errno in (*disk.NO_FILE, 2), read


@pytest.mark.parametrize("shard", ["blobs/zz", "records/zz"])
def test_gc_removes_nothing_behind_a_link(shard: str, store: FileStore, tmp_path: Path):
    (tmp_path / "outside" / "folder").mkdir(parents=True)
    (tmp_path / "outside" / "x.json").write_text("mine")
    (store.root / shard).symlink_to(tmp_path / "outside")
    store.stop()
    gc(store, max_age_s=1e9, dry_run=False)
    check(store, repair=True)
    assert {path.name for path in (tmp_path / "outside").iterdir()} == {"folder", "x.json"}


def test_a_name_that_no_file_system_holds_is_a_missing_blob(store: FileStore):
    record = store.load(KEY).record
    assert record
    long = record._replace(outputs={"a": record.outputs["a"]._replace(digest="blake3:" + "ab" * 200)})
    store.commit(long)
    assert store.load(KEY).problem == "missing"
    check(store)
    assert made_again(store)


def test_a_blob_of_another_size_is_damaged_without_being_read(store: FileStore, monkeypatch: pytest.MonkeyPatch):
    path = blob(store)
    path.chmod(0o644)
    path.write_bytes(b"another length")
    monkeypatch.setattr(FileStore, "file_digest", None)
    assert store.load(KEY).problem == "damaged"


def test_a_file_with_its_bytes_on_the_disk_is_not_hollow(tmp_path: Path):
    (tmp_path / "small").touch()
    os.truncate(tmp_path / "small", 1 << 30)
    terabyte(tmp_path / "large")
    for name, hollow in (("small", None), ("large", 0)):
        with open_file(tmp_path / name) as file:
            assert hollow_bytes(file.fileno()) == hollow
            assert file.tell() == 0


@pytest.mark.parametrize(
    "parts",
    [{"inputs": "x"}, {"inputs": {"a": 3}}, {"watch": {"f": 3}}, {"watch": {"f": [1]}}, {"watch": []},
     {"tools": {"t": []}}, {"code": 1}, {"function": None}],
)  # fmt: skip
def test_parts_of_other_types_are_damage(parts: dict[str, object], store: FileStore):
    record = store.load(KEY).record
    assert record
    store.commit(record._replace(parts={**record.parts, **parts}))
    assert store.load(KEY).problem == "garbage"


@pytest.mark.parametrize("of", ["watch:f", "output:b", "output:t", "x:a", "a"])
def test_a_slice_of_nothing_is_damage(of: str, store: FileStore):
    record = store.load(KEY).record
    assert record
    store.commit(record._replace(outputs={**record.outputs, "t": record.outputs["a"]._replace(of=of)}))
    assert store.load(KEY).problem == "garbage"


SCANS = [3, [], [[], "a"], [None, None, None], [[1, 2, 3, 4], "a", [[]]], {"a": 1}]


@pytest.mark.parametrize("known", SCANS)
def test_a_damaged_cache_of_module_digests_is_read_anew(known: object, store: FileStore):
    function = "llm_build.core.digest:canonical"
    right = FileSources(store)
    digest, _ = right.code(function, ())
    right.save()
    document = store.load_document("cache/meanings")
    assert document
    store.save_document("cache/meanings", dict.fromkeys(document, known))
    assert FileSources(store).code(function, ())[0] == digest
