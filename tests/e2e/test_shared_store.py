"""The commands over a shared store: push, a build and a pull on machines that have nothing, gc."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_build.__main__ import main
from tests.conftest import ROOT, Shell, bytes_of

NAME = "demo-q4f16_1-cpu"
HEAVY = ("tvm", "torch", "transformers", "ray")


@pytest.fixture(scope="module")
def remote(demo: Shell, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `build push` made of the demo, with a lock file in the demo's folder."""
    where = f"store.remote=file://{tmp_path_factory.mktemp('shared')}/store"
    said = demo.run("push", where).stdout
    assert "results in file://" in said
    assert "MB were uploaded" in said
    assert "; 0 B were uploaded" in demo.run("push", where, "--quiet").stdout
    demo.run("lock", "--file=demo.lock.yaml")
    return where


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A machine with an empty store, where nothing heavy can be imported."""
    for name in HEAVY:
        (tmp_path / "without" / name).mkdir(parents=True)
        code = f"open({str(tmp_path / 'imported')!r}, 'a').write('{name} ')\nraise ImportError('{name} is not here')\n"
        (tmp_path / "without" / name / "__init__.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
    (tmp_path / "work").mkdir()
    return Shell(tmp_path / "work", tmp_path / "store")


def test_a_fresh_machine_builds_by_downloading(demo: Shell, remote: str, fresh: Shell, tmp_path: Path):
    shutil.copytree(ROOT / "builder" / "demo", tmp_path / "checkpoint")
    given = (remote, f"model.source={tmp_path / 'checkpoint'}", "store.mode=readonly")
    assert fresh.ran("build", *given) == {"fetch"}  # which reads the checkpoint: its key is of this machine
    made = {k: v for k, v in bytes_of(fresh.folder / "dist" / NAME).items() if k != "build.json"}
    assert made == {k: v for k, v in bytes_of(demo.folder / "dist" / NAME).items() if k != "build.json"}
    assert not (tmp_path / "imported").exists()
    (plan,) = fresh.json("plan", *given)["recipes"]
    assert {step["status"] for step in plan["steps"]} == {"fresh"}


def test_pull_by_lock_file_needs_no_checkpoint(demo: Shell, remote: str, fresh: Shell, tmp_path: Path):
    shutil.copy(demo.folder / "demo.lock.yaml", fresh.folder / f"{NAME}.lock.yaml")
    said = fresh.run("pull", remote, "model.source=/nowhere/at/all").stdout
    files = bytes_of(fresh.folder / "dist" / NAME)
    assert f"{NAME}: {len(files) - 1} of {len(files) - 1} files written" in said
    assert files == bytes_of(demo.folder / "dist" / NAME)
    assert not (tmp_path / "imported").exists()
    fresh.run("verify-provenance", f"dist/{NAME}")


Say = Callable[..., str]


@pytest.fixture
def say(fresh: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """say("gc", code=2): what a command prints, run in this process on the fresh machine."""
    monkeypatch.chdir(fresh.folder)
    monkeypatch.setenv("LLM_BUILD_STORE", str(fresh.store))

    def run(*words: str, code: int = 0) -> str:
        found = main(words)
        out, err = capsys.readouterr()
        assert found == code, out + err
        return out + err

    return run


def test_pull_says_what_is_not_there(remote: str, fresh: Shell, say: Say, tmp_path: Path):
    said = say("pull", remote, "quant=q8f16_1", code=1)
    assert "error: lower: its result is not in file://" in said
    assert "next: build makes it here; build push, where it was made" in said
    assert not (fresh.folder / "dist").exists()
    assert not (tmp_path / "imported").exists()
    shutil.copy(ROOT / "builder" / "demo" / "config.json", "x.lock.yaml")
    assert "is no lock file" in say("pull", remote, "--locked", "--file=x.lock.yaml", code=2)
    assert "there is no lock file for this recipe" in say("pull", remote, "--locked", code=2)


def test_mistakes(remote: str, say: Say):
    assert "store.remote is not set" in say("pull", code=2)
    assert "store.mode is readonly" in say("push", remote, "store.mode=readonly", code=2)
    assert "store.mode is readonly" in say("gc", "--remote", "--yes", remote, "store.mode=readonly", code=2)
    assert "--max-size is for the store of this machine" in say("gc", "--remote", "--max-size=1GB", remote, code=2)
    assert "allowed: write, readonly" in say("plan", "store.mode=rw", code=2)
    assert "expected a URL" in say("plan", "store.remote=/a/folder", code=2)
    assert "not built here: fetch" in say("push", remote, code=1)


def test_gc_keeps_what_lock_files_and_the_command_line_name(demo: Shell, remote: str, fresh: Shell, say: Say):
    free = json.loads(say("gc", "--remote", "--max-age=0s", remote, "--json"))
    assert free["dry_run"]
    assert len(free["records"]) == 9
    (fresh.folder / "recipes").mkdir()
    shutil.copy(demo.folder / "demo.lock.yaml", "recipes/demo.lock.yaml")
    locked = json.loads(say("gc", "--remote", "--max-age=0s", remote, "--json"))
    assert len(locked["records"]) < 9
    named = json.loads(demo.run("gc", "--remote", "--max-age=0s", remote, "--json", "quant=q4f16_1").stdout)
    assert named["records"] == []
    assert "next: build gc --remote --yes" in say("gc", "--remote", remote)
