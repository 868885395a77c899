"""What others wrote, read at the edge: names that lead out of a folder, wrong types, JSON that is made to hurt."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_build.app import export
from llm_build.core.digest import canonical, sha256_hex
from llm_build.core.errors import BuildError, StepError, UserError
from llm_build.core.filestore import open_store
from llm_build.core.json_text import MAX_DEPTH, NotJson, parse_json, without_nonfinite
from llm_build.core.names import are_inside, is_digest, is_inside, is_key, is_plain
from llm_build.core.record import Output, Record, decode_record, encode_record
from llm_build.formats import checkpoint, safetensors
from llm_build.formats.tensorcache import read_tensor_cache
from llm_build.planner import sources
from llm_build.provenance import lock_file
from llm_build.provenance.statement import PREDICATE, STATEMENT, check_statement, subjects

OUTSIDE = ("../x", "/etc/passwd", "a/../../x", "a/..", "..", ".", "", "a//b", "a/", "a\\b", "a\0b", "a\n../x", "./a")
INSIDE = ("a", "a/b", "tensor/model.layers.0.w", "..a", "a..b/c...", ".hidden", "a b", "ü/模")
KEY, DIGEST = "ab" * 32, "blake3:" + "1" * 64


def record(**changes: Any) -> bytes:
    """A record with the right seal, whatever is in it."""
    good = Record(
        KEY, {"tools": {}}, {"a": Output(DIGEST, 1)}, {"port": {"a": DIGEST}}, {"figure": 1}, ("w",), 1.0, 2.0
    )
    fields = {**json.loads(encode_record(good).partition(b"\n")[0]), **changes}
    body = canonical(fields)
    return body + b'\n"sha256:' + sha256_hex(body).encode() + b'"\n'


def output(**changes: Any) -> dict[str, Any]:
    return {**Output(DIGEST, 1)._asdict(), **changes}


def read_record(name: str, folder: Path) -> None:
    if decode_record(record(outputs={name: output()}), KEY) is None:
        raise UserError("damaged")


def read_lock(name: str, folder: Path) -> None:
    cell = {"artifact": "p", "steps": {"p": KEY}, "outputs": {name: DIGEST}}
    path = folder / "x.lock.yaml"
    path.write_text(yaml.safe_dump({"lock": 1, "recipe": None, "tools": {}, "cells": {"n": cell}}))
    lock_file.read(path)


def read_lock_cell(name: str, folder: Path) -> None:
    path = folder / "x.lock.yaml"
    path.write_text(yaml.safe_dump({"lock": 1, "recipe": None, "tools": {}, "cells": {name: {}}}))
    lock_file.read(path)


def read_statement(name: str, folder: Path) -> None:
    files = [{"name": name, "digest": {"blake3": "1" * 64}}]
    document = {
        "_type": STATEMENT, "predicateType": PREDICATE, "subject": files,
        "predicate": {"runDetails": {"byproducts": []}, "buildDefinition": {"resolvedDependencies": []}},
    }  # fmt: skip
    assert (name in subjects(document)) == is_inside(name)
    try:
        check_statement(document, folder / "build.json")
    except StepError as error:
        if "contradicts itself" not in error.message:  # which is said of names that are right
            raise


def read_tensor_name(name: str, folder: Path) -> None:
    header = json.dumps({name: {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode()
    (folder / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0")
    safetensors.read_header(folder / "x.safetensors", "x.safetensors")


READERS: tuple[Callable[[str, Path], None], ...] = (
    read_record, read_lock, read_lock_cell, read_statement, read_tensor_name
)  # fmt: skip


def read_index(name: str, folder: Path) -> None:
    (folder / "i.json").write_text(json.dumps({"weight_map": {"t": name}}))
    checkpoint.read_index(folder / "i.json", "i.json")


def read_cache(name: str, folder: Path) -> None:
    entry = {"name": "t", "shape": [1], "dtype": "uint8", "byteOffset": 0, "nbytes": 1}
    read_tensor_cache(json.dumps({"records": [{"dataPath": name, "records": [entry]}]}))


PLAIN_READERS = (read_index, read_cache)  # no folders below the folder


@pytest.mark.parametrize("read", [*READERS, *PLAIN_READERS])
@pytest.mark.parametrize("name", OUTSIDE)
def test_a_name_that_leads_out_of_the_folder_is_refused_by_every_reader(
    read: Callable[[str, Path], None], name: str, tmp_path: Path
):
    with pytest.raises(BuildError):
        read(name, tmp_path)


@pytest.mark.parametrize("name", INSIDE)
def test_other_names_are_read(name: str, tmp_path: Path):
    for read in READERS:
        read(name, tmp_path)
    for read in PLAIN_READERS:
        if "/" in name:
            with pytest.raises(UserError, match="outside the folder"):
                read(name, tmp_path)
        else:
            read(name, tmp_path)


def test_names_judged_together_are_judged_as_each_alone():
    for bad in OUTSIDE:
        assert not is_inside(bad)
        assert not are_inside([*INSIDE, bad])
        assert not are_inside([bad, *INSIDE])
    assert are_inside(INSIDE)
    assert are_inside([])
    assert not is_inside(3)
    assert not are_inside(["a", 3])
    assert is_plain("a")
    assert not is_plain("a/b")
    assert is_digest(DIGEST)
    assert not any(map(is_digest, ("blake3:../x", "blake3:", "x", 3, "blake3:AB", "blake3:ab\n")))
    assert is_key(KEY)
    assert not any(map(is_key, ("../../x", "", 3, None)))


@pytest.mark.parametrize(
    "changes",
    [
        {"outputs": {"a": output(digest="blake3:../../../etc/passwd")}}, {"outputs": {"a": output(nbytes="1")}},
        {"outputs": {"a": output(nbytes=-1)}}, {"outputs": {"a": output(offset=-1, of="watch:f")}},
        {"outputs": {"a": output(of="watch:../f")}}, {"outputs": {"a": output(of=3)}},
        {"outputs": {"a": {"digest": 1}}},
        {"outputs": {"a": output(mtime_ns=True)}}, {"outputs": [1]}, {"outputs": 3}, {"parts": []}, {"parts": None},
        {"groups": {"p": 3}}, {"groups": {"p": {"a": 3}}}, {"groups": 1}, {"facts": []}, {"warnings": [1]},
        {"warnings": 3}, {"started": "now"}, {"started": -1}, {"started": 1e300}, {"seconds": None}, {"nbytes": 0.5},
        {"peak_memory_bytes": "1"}, {"key": "00"}, {"another": 1}, {"parts": {"tools": 3}},
    ],
    ids=str,
)  # fmt: skip
def test_a_record_of_the_right_seal_and_the_wrong_types_is_damage(changes: dict[str, Any], tmp_path: Path):
    assert decode_record(record(), KEY)
    assert decode_record(record(**changes), KEY) is None
    store = open_store(tmp_path / "store")
    store.start()
    path = store.root / "records" / KEY[:2] / f"{KEY}.json"
    path.parent.mkdir()
    path.write_bytes(record(**changes))
    assert store.load(KEY) == (None, "garbage", "record damaged")
    store.load(KEY, repair=True)
    assert not path.exists()
    store.stop()


@pytest.mark.parametrize("body", [b"3", b"null", b"[]", b"{}", b"{", b"\xff", b"[" * 100_000, b"9" * 5000], ids=len)
def test_a_sealed_record_that_is_no_record(body: bytes):
    assert decode_record(body + b'\n"sha256:' + sha256_hex(body).encode() + b'"\n', KEY) is None


BAD_JSON = {
    "digits": b'{"a": ' + b"9" * 4301 + b"}",
    "nesting": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "unclosed": b'{"a": ' + b"[" * 100_000,
    "objects": b'{"a": ' * 100_000 + b"1" + b"}" * 100_000,
    "deep enough": b'{"a": ' + b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1) + b"}",
    "encoding": b'{"a": "\xff"}',
    "half": b'{"a": ',
}


def read_config(path: Path) -> None:
    (path.parent / "config.json").write_bytes(path.read_bytes())
    sources.checkpoint_at("folder", "", path.parent)


def read_header(path: Path) -> None:
    text = path.read_bytes()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    safetensors.read_header(path, "x")


JSON_READERS: dict[str, Callable[[Path], object]] = {
    "config": read_config,
    "file of a checkpoint": lambda path: checkpoint.read_json(path, "x"),
    "index": lambda path: checkpoint.read_index(path, "x"),
    "header": read_header,
    "tensor cache": lambda path: read_tensor_cache(path.read_bytes()),
    "lock": lock_file.read,
}


@pytest.mark.parametrize("reader", JSON_READERS)
@pytest.mark.parametrize("what", BAD_JSON)
def test_json_that_is_made_to_hurt_is_refused_at_once(reader: str, what: str, tmp_path: Path):
    (tmp_path / "x.json").write_bytes(BAD_JSON[what])
    started = time.process_time()
    with pytest.raises(UserError):
        JSON_READERS[reader](tmp_path / "x.json")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("digits", "more than 4300 digits"),
        ("nesting", "nested too deep; allowed: 64 levels"),
        ("encoding", "not UTF-8"),
    ],
)
def test_why_json_is_refused(what: str, words: str):
    with pytest.raises(NotJson, match=words):
        parse_json(BAD_JSON[what])


def test_json_as_it_should_be():
    assert parse_json(b'\xef\xbb\xbf{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse_json('{"a": 1, "a": 2}') == {"a": 2}
    with pytest.raises(NotJson, match="it has 'a' twice"):
        parse_json('{"a": 1, "a": 2}', unique=True)


def test_a_header_of_40_000_tensors_with_one_name_twice(tmp_path: Path):
    entries = [f'"t{i}": {{"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}' for i in range(40_000)]
    (tmp_path / "x").write_text("{" + ", ".join([*entries, entries[-1]]) + "}")
    started = time.process_time()
    with pytest.raises(UserError, match="'t39999' twice"):
        read_header(tmp_path / "x")
    assert time.process_time() - started < 1


def test_export_neither_writes_nor_removes_behind_a_link(tmp_path: Path):
    store, folder, elsewhere = open_store(tmp_path / "store"), tmp_path / "dist", tmp_path / "elsewhere"
    store.start()
    (store.scratch() / "f").write_text("f")
    outputs = store.ingest({"card/README.md": next((store.root / "tmp").glob("*/*/f"))})
    store.stop()
    elsewhere.mkdir()
    (elsewhere / "README.md").write_text("mine")
    folder.mkdir()
    (folder / "card").symlink_to(elsewhere)
    (folder / "build.json").write_text(json.dumps({"subject": [{"name": "card/README.md"}, {"name": "../store"}]}))
    with pytest.raises(UserError, match="lies behind a link"):
        export.put("n", folder, outputs, "{}", store)
    export.put("n", folder, {}, "{}", store)  # what an earlier build is said to have left
    assert (elsewhere / "README.md").read_text() == "mine"
    assert (tmp_path / "store").is_dir()


def test_numbers_that_json_cannot_hold_become_words():
    nan, inf = float("nan"), float("inf")
    assert without_nonfinite({"a": inf, "b": [nan, (-inf, 1.5)], "c": True}) == {
        "a": "inf",
        "b": ["nan", ["-inf", 1.5]],
        "c": True,
    }
