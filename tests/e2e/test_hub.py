"""hf:// sources against a hub of our own on loopback: download, pinned commit, offline."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.conftest import Shell
from tests.e2e.test_main_job import copy_demo

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The requests that huggingface_hub makes for a snapshot: model info, file tree, HEAD and GET of a file."""

    folder: Path
    refuses = False  # to send weights

    def do_HEAD(self) -> None:
        self.answer(send=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/org/demo/tree/"):
            tree = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": COMMIT} for f in self.files()]
            self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
        elif self.path.startswith("/api/models/org/demo"):
            files = [{"rfilename": f.name} for f in self.files()]
            info = {"id": "org/demo", "modelId": "org/demo", "sha": COMMIT, "siblings": files, "private": False}
            self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        else:
            self.answer(send=True)

    def files(self) -> list[Path]:
        return sorted(self.folder.iterdir())

    def answer(self, send: bool) -> None:
        file = self.folder / self.path.rpartition("/")[2]
        if self.refuses and file.suffix == ".safetensors":
            self.reply(403, b"", {"X-Error-Message": "come back later"})
            return
        if not self.path.startswith("/org/demo/resolve/") or not file.is_file():
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = file.read_bytes()
        etag = hashlib.sha256(data).hexdigest()
        self.reply(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, send)

    def reply(self, code: int, data: bytes, headers: dict[str, str], send: bool = True) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if send:
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    Hub.folder, Hub.refuses = copy_demo(tmp_path / "remote"), False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    yield server
    server.shutdown()
    server.server_close()


def test_download_is_pinned_and_goes_on_without_the_hub(hub, demo: Shell, tmp_path: Path):
    (tmp_path / "work").mkdir()
    shell = Shell(tmp_path / "work", demo.store)
    words = ("model=llama", "model.source=hf://org/demo", "verify=off")
    assert shell.json("plan", *words)["recipes"][0]["steps"][0]["status"] == "stale"
    assert not list((tmp_path / "hf").rglob("*.safetensors"))
    shell.run(*words)
    statement = json.loads((shell.folder / "dist" / "llama-q4f16_1-cpu" / "build.json").read_text())
    assert f"hf://org/demo@{COMMIT}" in json.dumps(statement)
    hub.shutdown()
    hub.server_close()
    assert shell.ran(*words) == set()


def test_a_download_that_fails_costs_only_its_cells_where_the_build_keeps_going(hub, demo: Shell, tmp_path: Path):
    (tmp_path / "work").mkdir()
    shell = Shell(tmp_path / "work", demo.store)
    here = copy_demo(tmp_path / "here")
    words = ("-m", "model=llama", f"model.source=hf://org/demo,{here}", "verify=off")
    shell.run("plan", *words)
    Hub.refuses = True
    whole = shell.json(*words, "-k", code=2)
    assert [cell["status"] for cell in whole["matrix"]["cells"]] == ["failed", "ran"]
    failed = whole["recipes"][0]["steps"][0]
    assert failed["name"] == "fetch"
    assert "the hub cannot be reached" in failed["error"]["message"]
    done = shell.run(*words, code=2)
    assert "the hub cannot be reached" in done.stderr
    assert not done.stdout


def test_a_repository_with_nothing_but_one_pickle(hub, demo: Shell, tmp_path: Path):
    import torch
    from safetensors.torch import load_file

    remote = tmp_path / "remote"
    tensors = {}
    for file in sorted(remote.glob("*.safetensors")):
        tensors |= load_file(file)
        file.unlink()
    (remote / "model.safetensors.index.json").unlink()
    torch.save(tensors, remote / "pytorch_model.bin")
    (tmp_path / "work").mkdir()
    shell = Shell(tmp_path / "work", demo.store)
    words = ("model=llama", "model.source=hf://org/demo", "verify=off")
    assert "lower" not in shell.ran(*words)
    assert shell.ran(*words) == set()


def test_offline_says_so_and_points_at_a_folder(shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = shell.run("model=llama", "model.source=hf://org/other@v1", code=2)
    assert "hf://org/other@v1 is not on this disk" in done.stderr
    assert "model.source=/path/to/checkpoint" in done.stderr
