"""A folder against its build.json: what is changed, missing or extra is named, and a false statement is found."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from llm_build.core.digest import digest_of_bytes, digest_of_names, sha256_hex
from llm_build.core.errors import StepError
from llm_build.provenance import statement as provenance

FILES = {"model.so": b"code", "params/0.bin": b"weights" * 1000, "config.json": b"{}"}
TENSORS = {"a": digest_of_bytes(b"a"), "b/c": digest_of_bytes(b"c")}


def hex_of(digest: str) -> str:
    return digest.partition(":")[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for name in (provenance.NAME, provenance.SIGNATURE):
        (tmp_path / name).touch()
    return tmp_path


@pytest.fixture
def document() -> Any:
    digests = {name: digest_of_bytes(content) for name, content in FILES.items()}
    subject = [
        {"name": name, "digest": {"sha256": sha256_hex(FILES[name]), "blake3": hex_of(digest)}}
        for name, digest in digests.items()
    ]
    dependencies = [
        {"name": f"fetch/tensor/{name}", "digest": {"blake3": hex_of(digest)}} for name, digest in TENSORS.items()
    ]
    steps = [
        {
            "name": "fetch",
            "digest": {"sha256": "0"},
            "annotations": {"facts": {"checkpoint": digest_of_names(TENSORS)}},
        },
        {"name": "package", "digest": {"sha256": hex_of(digest_of_names(digests))}, "annotations": {}},
    ]
    return {
        "_type": provenance.STATEMENT, "predicateType": provenance.PREDICATE, "subject": subject,
        "predicate": {
            "buildDefinition": {"resolvedDependencies": dependencies}, "runDetails": {"byproducts": steps},
        },
    }  # fmt: skip


def test_a_folder_as_it_was_built(folder: Path, document: Any):
    provenance.check_statement(document, folder / provenance.NAME)
    checked = provenance.check_files(folder, document)
    assert checked.intact
    assert checked.same == tuple(sorted(FILES))
    assert checked.nbytes == sum(map(len, FILES.values()))


def test_every_file_that_is_not_as_it_was_is_named(folder: Path, document: Any):
    (folder / "config.json").write_bytes(b"[]")
    (folder / "model.so").unlink()
    (folder / "model.so").mkdir()
    (folder / "model.so" / "note.txt").touch()
    (folder / "params" / "more.bin").symlink_to("nowhere")
    checked = provenance.check_files(folder, document)
    assert not checked.intact
    assert checked._replace(nbytes=0) == provenance.Checked(
        ("params/0.bin",), ("config.json",), ("model.so",), ("model.so/note.txt", "params/more.bin"), 0
    )


def test_each_digest_of_a_file_counts(folder: Path, document: Any):
    for name in provenance.HASHES:
        false = copy.deepcopy(document)
        false["subject"][0]["digest"][name] = "0" * 64
        assert provenance.check_files(folder, false).changed == ("model.so",)


def test_a_statement_that_is_none_or_contradicts_itself(folder: Path, document: Any):
    def refused(change, said: str) -> None:
        false = copy.deepcopy(document)
        change(false)
        with pytest.raises(StepError, match=said):
            provenance.check_statement(false, folder / "build.json")

    refused(lambda d: d.pop("subject"), "is no provenance of llm-build: KeyError: 'subject'")
    refused(lambda d: d.update(_type="x"), "is no provenance of llm-build: another type")
    refused(lambda d: d["subject"][0]["digest"].update(md5="0"), "digests of another kind")
    refused(lambda d: d["subject"][0].update(name="../../etc/passwd"), "files outside its folder: ../../etc/passwd")
    refused(lambda d: d["subject"].pop(), "contradicts itself: no step of it made the files")
    refused(lambda d: d["subject"][0]["digest"].update(blake3="0" * 64), "no step of it made the files")
    dependencies = ("predicate", "buildDefinition", "resolvedDependencies")
    refused(lambda d: d[dependencies[0]][dependencies[1]][dependencies[2]].pop(), "its tensors are not those of its")
    with pytest.raises(StepError, match="TypeError"):
        provenance.check_statement([], folder / "build.json")
