"""A cloned repository with a store of its own, in which a library runs code when it is loaded: none of it is loaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from llm_build.core.digest import canonical, digest_of_file, sha256_hex
from tests.conftest import Shell

SOURCE = """
#include <stdio.h>
__attribute__((constructor)) static void run(void) { fclose(fopen("%s", "w")); }
"""


@pytest.fixture
def planted(demo: Shell, tmp_path: Path) -> tuple[Shell, Path]:
    """(a folder with a copy of the demo's store whose library makes a file when it is loaded, that file). Its records
    are whole: whoever wrote them can write digests."""
    canary = tmp_path / "ran"
    (tmp_path / "evil.c").write_text(SOURCE % canary)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "evil.so", tmp_path / "evil.c"], check=True)
    shell = Shell(tmp_path / "clone", tmp_path / "clone" / ".store")
    shell.folder.mkdir()
    shutil.copytree(demo.store, shell.store)
    digest = digest_of_file(tmp_path / "evil.so")
    blob = shell.store / "blobs" / digest.rpartition(":")[2][:2] / digest.rpartition(":")[2]
    blob.parent.mkdir(exist_ok=True)
    shutil.copy(tmp_path / "evil.so", blob)
    status = blob.stat()
    for path in (shell.store / "records").rglob("*.json"):
        record = json.loads(path.read_bytes().partition(b"\n")[0])
        for name, output in record["outputs"].items():
            if name.endswith(".so"):
                record["outputs"][name] = {
                    **output, "digest": digest, "nbytes": status.st_size, "mtime_ns": status.st_mtime_ns
                }  # fmt: skip
        body = canonical(record)
        path.write_bytes(body + b'\n"sha256:' + sha256_hex(body).encode() + b'"\n')
    return shell, canary


def test_a_build_over_a_planted_store_runs_nothing_of_it(planted: tuple[Shell, Path]) -> None:
    shell, canary = planted
    assert shell.ran("build") >= {"lower", "package", "verify"}
    assert not canary.exists()
    shell.run("generate", "The function returns", "--max-tokens", "4")
    assert not canary.exists()


def test_a_planted_folder_is_not_loaded_whatever_the_caches_of_its_store_say(
    planted: tuple[Shell, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who plants a folder with its store can also export it there, which the store's caches note."""
    shell, canary = planted
    monkeypatch.setenv("LLM_BUILD_KEYS", str(shell.folder / "theirs"))
    shell.run("build", "verify=off", "store.trust=all")
    monkeypatch.delenv("LLM_BUILD_KEYS")
    (folder,) = (shell.folder / "dist").iterdir()
    done = shell.run("generate", f"dist/{folder.name}", "The function returns", "--max-tokens", "4", code=2)
    assert "was not built by you" in done.stderr
    assert not canary.exists()


def test_that_library_would_run_where_all_are_trusted(planted: tuple[Shell, Path]) -> None:
    """The attack is real: else the test above would say nothing."""
    shell, canary = planted
    shell.run("generate", "The function returns", "store.trust=all", "--max-tokens", "4", code=None)
    assert canary.exists()


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("store.path", "store: {path: .store}"),
        ("store.remote", "store: {remote: 'file:///tmp/theirs'}"),
        ("store.trust", "store: {trust: all}"),
        ("store.remote_options.endpoint_url", "store: {remote_options: {endpoint_url: 'http://theirs'}}"),
        ("executor.address", "executor: {kind: ray, address: 'ray://theirs:10001'}"),
        ("provenance.key", "provenance: {key: key.pem}"),
    ],
)
@pytest.mark.parametrize("file", ["conf/build.yaml", "recipes/theirs.yaml", "conf/quant/theirs.yaml"])
def test_files_of_the_folder_choose_no_store_and_no_trust(key: str, text: str, file: str, shell: Shell) -> None:
    path = shell.folder / file
    path.parent.mkdir(parents=True)
    path.write_text(f"# @package _global_\n{text}\n" if "build.yaml" not in file else text)
    words = {
        "conf/build.yaml": (),
        "recipes/theirs.yaml": ("recipe=theirs",),
        "conf/quant/theirs.yaml": ("quant=theirs",),
    }
    for command in ("plan", "build", "generate"):
        done = shell.run(command, *(["x"] if command == "generate" else []), *words[file], code=2)
        assert f"{key}: found" in done.stderr
    assert not (shell.folder / ".store").exists()
    assert os.listdir(shell.folder) == [file.partition("/")[0]]


@pytest.mark.parametrize(("key", "params"), [("store.path", "store.path: .store"), ("store.trust", "store.trust: all")])
@pytest.mark.parametrize("launcher", ["one_graph", "basic"])
def test_what_a_sweeper_says_nobody_typed(key: str, params: str, launcher: str, shell: Shell) -> None:
    """Overrides of a recipe's sweeper stand among those of its jobs."""
    (shell.folder / "recipes").mkdir()
    (shell.folder / "recipes" / "theirs.yaml").write_text(
        f"defaults: [{{override /hydra/launcher: {launcher}}}]\nhydra: {{sweeper: {{params: {{{params}}}}}}}\n"
    )
    for words in (("recipe=theirs",), ("-m", "recipe=theirs", "quant=q0f16,q4f16_1")):
        done = shell.run("build", *words, code=None)
        assert done.returncode
        assert f"{key}: found" in done.stderr
    assert not (shell.folder / ".store").exists()


def test_a_file_adds_nothing_to_the_options_that_are_typed(shell: Shell) -> None:
    (shell.folder / "recipes").mkdir()
    (shell.folder / "recipes" / "theirs.yaml").write_text("store: {remote_options: {endpoint_url: 'http://theirs'}}\n")
    for typed in ("store.remote_options.anon=true", "store.remote_options={anon: true}"):
        done = shell.run("plan", "recipe=theirs", f"store.remote=file://{shell.folder}/remote", typed, code=2)
        assert "store.remote_options.endpoint_url: found http://theirs" in done.stderr
    own = "store.remote_options={auto_mkdir: true}"
    shell.run("plan", "verify=off", f"store.remote=file://{shell.folder}/remote", own)
