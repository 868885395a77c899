"""The output folder: hard links, provenance, and nothing half done."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_build.app import export as export_module
from llm_build.app.export import Exported, export
from llm_build.core.errors import StepError, UserError
from llm_build.core.filestore import FileStore, open_store
from llm_build.core.run import Outcome, run
from llm_build.executors.local import LocalExecutor, capacity
from tests.core import toy

Built = tuple[FileStore, dict[int, Outcome]]
RECIPE = {"model": "toy"}
FILES = {"card/README.md", "config.json", "shard_0.bin", "shard_1.bin", "build.json"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """A store with the toy artifact of two shards and of one."""
    folder = tmp_path_factory.mktemp("export")
    store = open_store(folder / "store")
    source = toy.write_source(folder / "source.bin")
    with LocalExecutor(store, capacity(1)) as executor:
        yield store, {n: run(toy.plan(source, shards=n), store, executor, lambda event: None) for n in (1, 2)}


@pytest.fixture
def dist(built: Built, tmp_path: Path) -> Path:
    put(built, tmp_path / "dist")
    return tmp_path / "dist"


def put(built: Built, folder: Path, shards: int = 2) -> Exported:
    return export(built[1][shards], "toy", built[0], folder, RECIPE)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_large_files_are_links_into_the_store(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "_COPIED_BELOW_BYTES", 3000)
    dist = tmp_path / "dist"
    put(built, dist)
    assert files(dist) == FILES
    outputs = built[1][2].records["p"].outputs
    assert (dist / "shard_1.bin").samefile(built[0].path(outputs["shard_1.bin"].digest))
    assert (dist / "shard_1.bin").read_bytes() == b"B" * 3000
    assert not (dist / "config.json").samefile(built[0].path(outputs["config.json"].digest))


def test_a_hand_edit_of_a_small_file_stays_out_of_the_store_and_is_put_back_with_a_word(
    built: Built, dist: Path, tmp_path: Path
) -> None:
    put(built, tmp_path / "other")
    store, outputs = built[0], built[1][2].records["p"].outputs
    for name in outputs:
        os.chmod(dist / name, 0o644)
        with open(dist / name, "ab") as file:  # in place, as an editor of root does
            file.write(b"edited")
    for name, output in outputs.items():
        assert store.file_digest(store.path(output.digest)) == output.digest
        assert store.file_digest(tmp_path / "other" / name) == output.digest
    done = put(built, dist)
    assert set(done.edited) == set(done.written) == set(outputs)
    for name, output in outputs.items():
        assert store.file_digest(dist / name) == output.digest
    assert not put(built, dist).changed


def test_what_another_build_writes_anew_was_not_edited_by_hand(built: Built, dist: Path) -> None:
    (dist / "config.json").unlink()
    done = put(built, dist, shards=1)
    assert (done.edited, "config.json" in done.written) == ((), True)


def test_a_second_export_touches_nothing(built: Built, dist: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (dist, *dist.rglob("*"))}
    assert not put(built, dist).changed
    assert {path: path.stat().st_mtime_ns for path in (dist, *dist.rglob("*"))} == before


def test_edited_missing_and_leftover_files_are_put_right(built: Built, dist: Path) -> None:
    (dist / "config.json").unlink()
    (dist / "config.json").write_text("{}")
    (dist / "shard_0.bin").unlink()
    (dist / "mine.txt").write_text("mine")
    (dist / ".incoming").mkdir()
    (dist / ".incoming" / "half").write_text("half")
    done = put(built, dist)
    assert (done.written, done.removed) == (("config.json", "shard_0.bin"), ())
    assert files(dist) == FILES | {"mine.txt"}
    (dist / "build.json").write_text("{")
    assert put(built, dist).written == ("build.json",)


def test_only_files_of_an_earlier_export_are_removed(built: Built, dist: Path) -> None:
    (dist / "shard_7.bin").write_text("mine")
    done = put(built, dist, shards=1)
    assert (done.written, done.removed) == (("card/README.md", "build.json"), ("shard_1.bin",))
    assert files(dist) == (FILES - {"shard_1.bin"}) | {"shard_7.bin"}


def test_names_that_leave_the_folder_are_not_removed(built: Built, dist: Path) -> None:
    victim = dist.parent / "victim"
    victim.write_text("")
    document = json.loads((dist / "build.json").read_text())
    document["subject"] += [{"name": "../victim"}, {"name": str(victim)}]
    (dist / "build.json").write_text(json.dumps(document))
    put(built, dist)
    assert victim.exists()


def test_build_json_is_slsa_provenance(built: Built, dist: Path) -> None:
    text = (dist / "build.json").read_text()
    document = json.loads(text)
    assert (document["_type"], document["predicateType"]) == (
        "https://in-toto.io/Statement/v1", "https://slsa.dev/provenance/v1",
    )  # fmt: skip
    subjects = {subject["name"]: subject["digest"] for subject in document["subject"]}
    assert subjects.keys() == FILES - {"build.json"}
    for name, digest in subjects.items():
        assert digest["sha256"] == hashlib.sha256((dist / name).read_bytes()).hexdigest()
        assert digest["blake3"] == built[1][2].records["p"].outputs[name].digest.removeprefix("blake3:")
    definition, details = document["predicate"]["buildDefinition"], document["predicate"]["runDetails"]
    assert definition["externalParameters"] == {"recipe": RECIPE}
    assert {each["name"] for each in definition["resolvedDependencies"]} == {
        *(f"fetch/tensor/t{index}" for index in range(4)), "fetch/file/config.json",
    }  # fmt: skip
    steps = {each["name"]: each["annotations"] for each in details["byproducts"]}
    assert list(steps) == ["fetch", "shard", "quantize[0]", "quantize[1]", "package", "check"]
    assert "key" not in steps["fetch"]
    assert steps["package"]["key"] == built[1][2].steps["p"].key
    assert steps["package"]["facts"] == {"shards": 2}
    assert str(dist.parent) not in text
    assert os.uname().nodename not in text


def test_two_stores_and_folders_give_the_same_bytes_but_for_times(built: Built, dist: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "other")
    (tmp_path / "source").mkdir()
    source = toy.write_source(tmp_path / "source" / "other.bin")
    with LocalExecutor(store, capacity(2)) as executor:
        outcome = run(toy.plan(source, shards=2), store, executor, lambda event: None)
    export(outcome, "toy", store, tmp_path / "again", RECIPE)
    assert files(tmp_path / "again") == FILES
    for name in FILES - {"build.json"}:
        assert (tmp_path / "again" / name).read_bytes() == (dist / name).read_bytes()
    one, other = (json.loads((folder / "build.json").read_text()) for folder in (dist, tmp_path / "again"))
    assert without_times(one) == without_times(other)


def without_times(document: object) -> object:
    if isinstance(document, dict):
        kept = {key: value for key, value in document.items() if key not in ("startedOn", "finishedOn", "seconds")}
        return {key: without_times(value) for key, value in kept.items()}
    return [without_times(each) for each in document] if isinstance(document, list) else document


def test_another_file_system_gets_copies(built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shm = Path(tempfile.mkdtemp(dir="/dev/shm")) if os.path.isdir("/dev/shm") else tmp_path / "copy"
    try:
        put(built, shm)
        assert (shm / "shard_0.bin").read_bytes() == b"A" * 3000
        assert not put(built, shm).changed
        (shm / "shard_0.bin").chmod(0o644)
        (shm / "shard_0.bin").write_bytes(b"B" * 3000)
        assert put(built, shm).written == ("shard_0.bin",)
        assert (shm / "shard_0.bin").read_bytes() == b"A" * 3000
    finally:
        shutil.rmtree(shm)


def test_a_folder_that_cannot_be_written_keeps_its_files(built: Built) -> None:
    folder = Path(tempfile.mkdtemp())
    before = os.geteuid()
    try:
        put(built, folder / "dist")
        contents = {name: (folder / "dist" / name).read_bytes() for name in FILES}
        for path in (folder, folder / "dist"):
            path.chmod(0o555)
        if before == 0:
            os.seteuid(65534)
        with pytest.raises(UserError, match=r"cannot write .*dist: no permission to write to") as caught:
            put(built, folder / "dist", shards=1)
        assert "dist.path=" in caught.value.hint
        assert {name: (folder / "dist" / name).read_bytes() for name in FILES} == contents
    finally:
        os.seteuid(before)
        for path in (folder, folder / "dist"):
            path.chmod(0o755)
        shutil.rmtree(folder)


def test_a_failure_on_the_way_leaves_the_earlier_files(
    built: Built, dist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = {name: (dist / name).read_bytes() for name in FILES}
    (dist / "card" / "README.md").unlink()
    (dist / "card" / "README.md").mkdir()
    with pytest.raises(UserError, match="is a folder where a file must go"):
        put(built, dist, shards=1)
    (dist / "card" / "README.md").rmdir()
    assert {name: (dist / name).read_bytes() for name in FILES - {"card/README.md"}} == {
        name: data for name, data in contents.items() if name != "card/README.md"
    }
    assert not (dist / ".incoming").exists()


def test_sha256_is_computed_once(built: Built, dist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "sha256_of_file", None)
    shutil.rmtree(dist)
    fresh = FileStore(built[0].root)
    assert export(built[1][2], "toy", fresh, dist, RECIPE).changed
    assert files(dist) == FILES


def test_a_folder_that_did_not_fit_is_not_left_empty(built: Built, tmp_path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, most))
    try:
        with pytest.raises(StepError, match="the disk is full"):
            put(built, tmp_path / "new" / "dist")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert not (tmp_path / "new").exists()
    assert put(built, tmp_path / "new" / "dist").changed
    assert files(tmp_path / "new" / "dist") == FILES
