"""Bad input: a clear message, the right exit code, and everything that was good before stays."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Shell, bytes_of
from tests.e2e.test_main_job import change_tensor, copy_demo

FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture(scope="module")
def built(demo: Shell, tmp_path_factory: pytest.TempPathFactory) -> tuple[Shell, Path]:
    """A copy of the checkpoint, built once; tests break a copy of this copy."""
    folder = tmp_path_factory.mktemp("bad")
    source = copy_demo(folder / "good")
    shell = Shell(folder, demo.store)
    shell.run("model=llama", f"model.source={source}", "verify=off")
    return shell, source


def header(folder: Path, change: Callable[[dict], None]) -> None:
    """Rewrites the JSON header of the first shard; the data stays as it is."""
    data = (folder / FIRST).read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    table = json.loads(data[8 : 8 + length])
    change(table)
    text = json.dumps(table).encode()
    (folder / FIRST).write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


def config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def index(folder: Path, change: Callable[[dict], None]) -> None:
    path = folder / "model.safetensors.index.json"
    whole = json.loads(path.read_text())
    change(whole["weight_map"])
    path.write_text(json.dumps(whole))


def truncate(folder: Path) -> None:
    os.truncate(folder / FIRST, 100_000)


def bad_length(folder: Path) -> None:
    data = bytearray((folder / FIRST).read_bytes())
    data[:8] = struct.pack("<Q", 1 << 60)
    (folder / FIRST).write_bytes(data)


def flip_header(folder: Path) -> None:
    data = bytearray((folder / FIRST).read_bytes())
    data[9] ^= 0x40
    (folder / FIRST).write_bytes(data)


def any_tensor(table: dict) -> str:
    return next(name for name in table if name.endswith("mlp.down_proj.weight"))


CASES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "missing shard": (lambda f: (f / FIRST).unlink(), [FIRST]),
    "missing folder": (shutil.rmtree, ["no such folder"]),
    "no config": (lambda f: (f / "config.json").unlink(), ["config.json"]),
    "config is no json": (lambda f: (f / "config.json").write_text("{"), ["config.json", "not valid JSON"]),
    "truncated": (truncate, [FIRST, "truncated"]),
    "header length": (bad_length, [FIRST, "header"]),
    "flipped bit in the header": (flip_header, [FIRST]),
    "shape lies": (lambda f: header(f, lambda t: t[any_tensor(t)].update(shape=[7, 7])), [FIRST, "mlp.down_proj"]),
    "offsets lie": (
        lambda f: header(f, lambda t: t[any_tensor(t)].update(data_offsets=[0, 1 << 40])),
        ["mlp.down_proj"],
    ),
    "unknown dtype": (lambda f: header(f, lambda t: t[any_tensor(t)].update(dtype="Q7")), ["Q7"]),
    "tensor renamed": (lambda f: header(f, lambda t: t.update(strange=t.pop(any_tensor(t)))), ["mlp.down_proj"]),
    "index escapes": (lambda f: index(f, lambda m: m.update({next(iter(m)): "../../etc/x.safetensors"})), ["outside"]),
    "index names nothing": (lambda f: index(f, lambda m: m.update({next(iter(m)): "gone.safetensors"})), ["gone"]),
    "unsupported architecture": (lambda f: config(f, model_type="mamba"), ["mamba", "llama"]),
    "maths not implemented": (lambda f: config(f, hidden_act="gelu"), ["hidden_act", "gelu"]),
    "wrong width": (lambda f: config(f, intermediate_size=700), ["700"]),
    "wrong type": (lambda f: config(f, hidden_size="wide"), ["hidden_size", "wide"]),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_checkpoint_is_refused_and_nothing_is_damaged(built, tmp_path: Path, case: str):
    shell, good = built
    before = bytes_of(shell.folder / "dist" / "llama-q4f16_1-cpu")
    bad = tmp_path / "bad"
    shutil.copytree(good, bad)
    damage, said = CASES[case]
    damage(bad)
    done = shell.run("model=llama", f"model.source={bad}", "verify=off", "dist.replace=true", code=2)
    assert done.stderr.startswith("error: ")
    for words in said:
        assert words in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert bytes_of(shell.folder / "dist" / "llama-q4f16_1-cpu") == before
    assert shell.ran("model=llama", f"model.source={good}", "verify=off") <= {"fetch"}


def test_nan_is_counted_and_refused_unless_allowed(built, tmp_path: Path):
    shell, good = built
    bad = tmp_path / "nan"
    shutil.copytree(good, bad)
    change_tensor(bad, "model.layers.1.mlp.down_proj.weight", lambda w: w.__setitem__([0, 5], np.float16("nan")))
    words = ("model=llama", f"model.source={bad}", "verify=off", "name=nan")
    done = shell.run(*words, code=2)
    assert "2 " in done.stderr
    assert "model.layers.1.mlp.down_proj.weight" in done.stderr
    assert "model.allow_nonfinite=true" in done.stderr
    assert "warning" in shell.run(*words, "model.allow_nonfinite=true").stdout


def test_a_failed_build_is_a_document_too(built, tmp_path: Path):
    shell, good = built
    bad = tmp_path / "bad"
    shutil.copytree(good, bad)
    truncate(bad)
    (recipe,) = shell.json("model=llama", f"model.source={bad}", "verify=off", "dist.replace=true", code=2)["recipes"]
    assert recipe["status"] == "failed"
    assert {s["name"]: s["status"] for s in recipe["steps"]}["fetch"] == "failed"
    assert set(shell.json("model=lama", code=2)) == {"recipes", "error"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=lama"], "did you mean llama"),
        (["model.contxt=1"], "context_window_size"),
        (["model.context_window_size=many"], "'many' is not possible; allowed: 1 or more, or auto"),
        (["model.context_window_size=9999"], "1 to 1024"),
        (["model.prefill_chunk_size=2000"], "1 to 1024"),
        (["model.hidden_size=128"], "hidden_size"),
        (["quant.group_size=-1"], "quant.group_size"),
        (["target.cpu=x86-64-v9"], "x86-64-v4"),
        (["model=llama2"], "model.source"),
        (["model.source=ftp://x"], "hf://"),
        (["pins.tools.numpy=0.1.0"], "pins.tools.numpy is 0.1.0"),
        (["plan", "--jsn"], "--jsn"),
        (["bild"], "build"),
        (["why"], "STEP"),
        (["generate"], "PROMPT"),
        (["name=../x"], "cannot name a folder"),
        (["verify.text=/nope"], "verify.text"),
        (["why", "lowr"], "lower"),
    ],
)
def test_bad_words_are_exit_2_with_the_way_out(demo: Shell, words: list[str], said: str):
    done = demo.run(*words, code=2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_typo_in_a_users_yaml_is_named_with_its_file(shell: Shell):
    own = shell.folder / "conf" / "quant" / "mine.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# mine\nname: mine\nkind: none\ndtyp: float16\n")
    done = shell.run("plan", "quant=mine", code=2)
    assert "quant.dtyp" in done.stderr
    assert "dtype" in done.stderr
    assert "conf/quant/mine.yaml" in done.stderr


def test_dist_and_store_that_cannot_be_written(shell: Shell, tmp_path: Path):
    (tmp_path / "file").write_text("")
    assert "is a file" in shell.run(f"dist.path={tmp_path / 'file'}", code=2).stderr
    assert shell.run(f"store.path={tmp_path / 'file'}", code=2).stderr.startswith("error: ")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to mount a small disk")
def test_full_disk_fails_clearly_and_goes_on_with_room(shell: Shell, tmp_path: Path):
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        words = (f"store.path={small / 'store'}", "verify=off")
        done = shell.run(*words, code=1)
        assert "No space left" in done.stderr or "disk is full" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=400m", str(small)], check=True)
        shell.run(*words)
        assert shell.run("doctor", "--store", words[0]).returncode == 0
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_damaged_blob_is_found_named_and_rebuilt(demo: Shell, tmp_path: Path):
    store = tmp_path / "store"
    (tmp_path / "work").mkdir()
    shell = Shell(tmp_path / "work", store)
    shutil.copytree(demo.store, store)
    shell.run("build")
    folder = shell.folder / "dist" / "demo-q4f16_1-cpu"
    before = bytes_of(folder)
    blob = max((f for f in (store / "blobs").rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    said = shell.run("doctor", "--store", code=1).stdout
    assert f"✗ store: damaged     file with other bytes: {blob.name}   (touches demo-q4f16_1-cpu: verify." in said
    assert "build doctor --store --repair" in said
    shell.run("build")
    assert bytes_of(folder) == before
    shell.run("doctor", "--store")
    blob.chmod(0o644)
    blob.write_bytes(data)
    assert "dropped; touches" in shell.run("doctor", "--store", "--repair").stdout
    assert ", whole" in shell.run("doctor", "--store").stdout
    assert len(shell.ran("build")) == 1  # with the same bytes again, nobody reads another
    assert bytes_of(folder) == before
