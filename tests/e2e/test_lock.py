"""Locks, diffs and provenance as a user has them, on the demo."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from llm_build.core.filestore import open_store
from tests.conftest import Shell
from tests.e2e.test_main_job import change_tensor, copy_demo
from tests.planning.test_signing import key_pair

NAME = "demo-q4f16_1-cpu"
LOCK = Path("recipes/demo.lock.yaml")


@pytest.fixture(scope="module")
def locked(demo: Shell, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """The demo's store, and a folder of its own where the recipe is built and locked."""
    shell = Shell(tmp_path_factory.mktemp("locked"), demo.store)
    shell.run("lock", "recipe=demo", "--quiet")
    return shell


@pytest.fixture
def own(locked: Shell, tmp_path: Path) -> Shell:
    """A copy of that folder, with no links into the store: a test damages it."""
    shutil.copytree(locked.folder, tmp_path, dirs_exist_ok=True)
    return Shell(tmp_path, locked.store)


def edit(shell: Shell, old: str, new: str, file: Path = LOCK) -> None:
    text = (shell.folder / file).read_text()
    assert text.count(old) == 1, old
    (shell.folder / file).write_text(text.replace(old, new))


def test_a_lock_is_written_once_and_holds_a_build_to_it(own: Shell):
    text = (own.folder / LOCK).read_text()
    assert str(own.folder) not in text
    assert str(own.store) not in text
    assert "inode" not in text
    assert f"\n      {NAME}.so: blake3:" in text
    assert own.run("lock", "recipe=demo", "--quiet").stdout.endswith("recipes/demo.lock.yaml: as it was\n")
    assert (own.folder / LOCK).read_text() == text
    assert own.run("lock", "--check", "recipe=demo").stdout == "recipes/demo.lock.yaml: matches\n"
    assert own.json("--locked", "recipe=demo")["recipes"][0]["status"] == "fresh"


def test_locked_says_what_moved_before_any_work(own: Shell):
    edit(own, "apache-tvm: ", "apache-tvm: 0.0.")
    edit(own, "architecture.vocab_size: 3072", "architecture.vocab_size: 99")
    before = sorted(own.store.rglob("*.json"))
    refused = own.run("--locked", "recipe=demo", "quant=q3f16_1", code=2)
    for said in (
        f"name {NAME} → demo-q3f16_1-cpu",
        "quant q4f16_1 → q3f16_1",
        "vocab_size 99 → 3072",
        "apache-tvm 0.0.",
    ):
        assert said in refused.stderr
    assert "build lock recipe=demo quant=q3f16_1" in refused.stderr
    assert [f for f in sorted(own.store.rglob("*.json")) if "cache" not in f.parts] == [
        f for f in before if "cache" not in f.parts
    ]
    assert not (own.folder / "dist" / "demo-q3f16_1-cpu").exists()
    checked = json.loads(own.run("lock", "--check", "recipe=demo", "--json", code=2).stdout)
    assert not checked["matches"]
    assert [row["what"] for row in checked["moved"]] == ["tools.apache-tvm", "model.vocab_size"]
    accepted = own.run("lock", "recipe=demo", "--quiet").stdout
    assert "written" in accepted
    assert "model.vocab_size 99 → 3072" in accepted


def test_another_checkpoint_is_refused_when_it_was_read(own: Shell):
    words = ["model=llama", f"model.source={copy_demo(own.folder / 'mine')}", "verify=off", "--file=mine.lock.yaml"]
    own.run("lock", "--quiet", *words)
    change_tensor(own.folder / "mine", "model.layers.1.mlp.down_proj.weight", lambda w: w.__setitem__(0, 0.5))
    refused = own.run("--locked", *words, code=2)
    assert "checkpoint digest sha256:" in refused.stderr
    assert "quantize" not in refused.stdout
    assert "checkpoint digest" in own.run("lock", "--check", *words, code=2).stderr


def test_a_branch_of_the_hub_is_built_at_the_locked_revision(own: Shell, monkeypatch: pytest.MonkeyPatch):
    repository = own.folder / "hub" / "models--org--demo"
    monkeypatch.setenv("HF_HUB_CACHE", str(repository.parent))
    first, second = "a" * 40, "b" * 40
    for commit in (first, second):
        copy_demo(repository / "snapshots" / commit)
    change_tensor(repository / "snapshots" / second, "model.norm.weight", lambda w: w.__setitem__(0, 0.5))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(first)
    words = ["model=llama", "model.source=hf://org/demo", "verify=off", "--file=hub.lock.yaml"]
    own.run("lock", "--quiet", *words)
    assert f"source: hf://org/demo@{first}\n" in (own.folder / "hub.lock.yaml").read_text()
    (repository / "refs" / "main").write_text(second)  # the branch moved on
    assert own.json("--locked", *words)["recipes"][0]["status"] == "fresh"
    own.run("lock", "--check", *words)
    moved = own.run("lock", "--quiet", *words).stdout
    assert f"checkpoint source hf://org/demo@{first} → hf://org/demo@{second}" in moved
    edit(own, "asked: hf://org/demo\n", "asked: hf://org/other\n", Path("hub.lock.yaml"))
    assert "checkpoint asked hf://org/other → hf://org/demo" in own.run("plan", "--locked", *words, code=2).stderr


def test_other_bytes_than_the_locked_ones_are_an_error_and_go_nowhere(own: Shell, tmp_path: Path):
    words = ["name=mine", "verify=off", "recipe=demo"]
    own.run("lock", "--quiet", *words)
    shutil.rmtree(own.folder / "dist" / "mine")
    cell = json.loads(own.run("lock", "--quiet", *words, "--json").stdout)["recipes"][0]
    shutil.rmtree(own.folder / "dist" / "mine")
    edit(own, "params_shard_0.bin: blake3:", "params_shard_0.bin: blake3:00")
    open_store(own.store).forget(next(step["key"] for step in cell["steps"] if step["name"] == "package"))
    failed = own.run("--locked", *words, code=1)
    assert "what was built is not what" in failed.stderr
    assert "params_shard_0.bin blake3:00" in failed.stderr
    assert not (own.folder / "dist" / "mine").exists()


def test_without_a_lock_there_is_nothing_to_hold_to(own: Shell):
    refused = own.run("--locked", "quant=q4f16_1", code=2)
    assert f"there is no lock: no file {own.folder / NAME}.lock.yaml" in refused.stderr
    assert "next: build lock quant=q4f16_1" in refused.stderr


def test_provenance_is_verified_and_signed(own: Shell, tmp_path: Path):
    folder = own.folder / "dist" / NAME
    said = own.run("verify-provenance", f"dist/{NAME}", "--against", "demo").stdout
    assert "8 files" in said
    assert said.endswith("all as build.json says; not signed\n")
    before = {f.name: f.read_bytes() for f in folder.iterdir()}
    private, public = key_pair(tmp_path)
    again = own.json(f"provenance.key={private}", "recipe=demo")["recipes"][0]
    assert again["status"] == "fresh"
    assert {f.name: f.read_bytes() for f in folder.iterdir() if f.suffix != ".sig"} == before
    signed = own.run("verify-provenance", f"dist/{NAME}", "--key", str(public)).stdout
    assert "signed by key" in signed
    (folder / "README.md").chmod(0o644)
    (folder / "README.md").write_text("mine")
    (folder / "tokenizer.json").unlink()
    (folder / "new.bin").touch()
    bad = own.run("verify-provenance", f"dist/{NAME}", "--key", str(public), code=1)
    assert bad.stdout.splitlines()[:3] == ["changed: README.md", "missing: tokenizer.json", "extra: new.bin"]
    nothing = own.run("verify-provenance", "dist", code=2)
    assert "dist has no build.json: nothing was built there" in nothing.stderr


def test_diff_of_folders_locks_and_recipes(own: Shell):
    assert own.run("diff", "demo", str(LOCK)).stdout == f"demo (recipe) → {LOCK} (lock): no difference\n"
    own.run("diff", f"dist/{NAME}", "demo")
    text = own.run("diff", str(LOCK), "demo", "quant=q3f16_1").stdout
    assert "quant.bits 4 → 3" in text
    assert "shard: " in text
    unknown = own.run("diff", "dmo", "demo", code=2)
    assert "'dmo' is no folder, no lock file (NAME.lock.yaml) and no recipe; recipes: demo" in unknown.stderr
    assert "build diff needs A B" in own.run("diff", "demo", code=2).stderr
