"""Results of others: whose record has no line of this user's secret is as good as absent."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from llm_build.core.digest import check_code
from llm_build.core.errors import StepError, UserError
from llm_build.core.filestore import FileStore, open_store
from llm_build.core.record import Record

KEY, OTHER = "ab" * 32, "cd" * 32
PARTS = {"function": "f"}


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LLM_BUILD_KEYS", str(tmp_path / "keys"))
    return tmp_path / "keys"


def kept(root: Path, key: str = KEY, content: bytes = b"code") -> FileStore:
    store = open_store(root)
    store.start()
    file = store.scratch() / "library.so"
    file.write_bytes(content)
    store.commit(Record(key, PARTS, store.ingest({"library.so": file})))
    store.stop()
    return store


def manifest(root: Path, key: str = KEY) -> Path:
    return root / "records" / key[:2] / f"{key}.json"


def test_ones_own_result_is_used_and_the_secret_is_ones_own(tmp_path: Path, keys: Path) -> None:
    kept(tmp_path / "store")
    assert open_store(tmp_path / "store").load(KEY).record
    assert stat.S_IMODE((keys / "seal").stat().st_mode) == 0o600
    assert stat.S_IMODE(keys.stat().st_mode) == 0o700
    assert [path.name for path in keys.iterdir()] == ["seal"]


def test_a_result_of_another_user_is_not_used_unless_all_are(
    tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLM_BUILD_KEYS", str(tmp_path / "theirs"))
    kept(tmp_path / "store")
    monkeypatch.setenv("LLM_BUILD_KEYS", str(keys))
    for trust in ("own", "signed"):
        lookup = open_store(tmp_path / "store", trust).load(KEY, repair=True)
        assert (lookup.record, lookup.problem) == (None, "foreign")
    assert open_store(tmp_path / "store", "all").load(KEY).record
    kept(tmp_path / "store", content=b"my own")
    assert open_store(tmp_path / "store", "own").load(KEY).record, "one's own took its place"


@pytest.mark.parametrize(
    "what", ["no line", "a line of zeros", "the line of another record", "a copy under another key"]
)
def test_a_line_belongs_to_its_record(what: str, tmp_path: Path, keys: Path) -> None:
    kept(tmp_path / "store")
    kept(tmp_path / "store", OTHER, b"another")
    body, seal, line = manifest(tmp_path / "store").read_bytes().splitlines(keepends=True)
    other = manifest(tmp_path / "store", OTHER).read_bytes().splitlines(keepends=True)
    forged = {
        "no line": body + seal,
        "a line of zeros": body + seal + line[:13] + b"0" * 64 + b'"\n',
        "the line of another record": body + seal + other[2],
        "a copy under another key": b"".join(other),
    }[what]
    manifest(tmp_path / "store").write_bytes(forged)
    assert open_store(tmp_path / "store").load(KEY).record is None


def test_what_a_lock_file_names_is_used_and_nothing_else_of_that_key(tmp_path: Path, keys: Path, monkeypatch) -> None:
    monkeypatch.setenv("LLM_BUILD_KEYS", str(tmp_path / "theirs"))
    record = kept(tmp_path / "store").load(KEY).record
    assert record is not None
    monkeypatch.setenv("LLM_BUILD_KEYS", str(keys))
    store = open_store(tmp_path / "store")
    store.seals.expected = {KEY: {"library.so": record.outputs["library.so"].digest}}
    assert store.load(KEY).record
    store.seals.expected = {KEY: {"library.so": "blake3:" + "0" * 64}}
    assert store.load(KEY).problem == "foreign"


def test_a_folder_that_keeps_no_secret_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LLM_BUILD_KEYS", str(tmp_path / "file" / "keys"))
    with pytest.raises(UserError, match="the key that seals your results cannot be kept") as refused:
        kept(tmp_path / "store")
    assert "LLM_BUILD_KEYS=" in str(refused.value.hint)


def test_other_bytes_of_the_same_size_and_time_are_not_loaded(tmp_path: Path, keys: Path) -> None:
    store = kept(tmp_path / "store")
    record = store.load(KEY).record
    assert record is not None
    output = record.outputs["library.so"]
    blob = store.path(output.digest)
    check_code(blob, output.digest)
    blob.chmod(0o644)
    blob.write_bytes(b"evil")
    os.utime(blob, ns=(output.mtime_ns, output.mtime_ns))
    assert store.load(KEY).record, "size and time are what they were"
    with pytest.raises(StepError, match="has other bytes than those that were made: it is not loaded"):
        check_code(blob, output.digest)
