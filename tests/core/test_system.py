"""Other operating systems than this one, by stand-ins: what core/system does where a call is missing."""

from __future__ import annotations

import ast
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_build.core import system
from tests.conftest import ROOT

HERE = ROOT / "builder" / "core" / "system.py"
LINUX_ONLY = {  # modules, and attributes of os, ctypes and others
    "fcntl", "sched_getaffinity", "memfd_create", "prctl", "sync_file_range", "madvise", "posix_fadvise", "CDLL",
    "pidfd_open", "copy_file_range", "sendfile", "splice", "eventfd", "O_TMPFILE", "O_DIRECT", "O_PATH", "epoll",
    "posix_fallocate", "fdatasync", "sched_setaffinity", "unshare", "setns", "getrandom", "inotify", "prlimit",
    "getxattr", "setxattr", "fallocate", "sigtimedwait", "pthread_sigmask",
}  # fmt: skip
LIBRARIES = {"targets/cuda_runtime.py", "targets/nvrtc.py", "runtime/nccl.py"}  # of NVIDIA, by name


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """This process as macOS would have it: another name, calls of Linux alone gone, no /proc and no /sys."""
    monkeypatch.setattr(sys, "platform", "darwin")
    for name in ("sched_getaffinity", "memfd_create"):
        monkeypatch.delattr(os, name)
    for name in ("_STATUS", "_SMAPS", "_CGROUP"):
        monkeypatch.setattr(system, name, str(tmp_path / "none"))


@pytest.mark.usefixtures("mac")
def test_calls_that_a_mac_lacks_have_another_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "uname", lambda: os.uname_result(("Darwin", "m", "24", "v", "arm64")))
    assert (system.name(), system.host_triple()) == ("macOS", "arm64-apple-macos")
    assert system.cores() == os.cpu_count()
    assert system.memory_bytes() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert system.peak_bytes() == resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "bytes there"
    assert system.proportional_bytes() is None
    with open(tmp_path / "a", "wb") as one, open(tmp_path / "b", "wb") as two:
        assert not system.clone(one.fileno(), two.fileno())
    system.populate(0, 4096)  # the address of nothing: a call would fail, and is not made
    system.die_with_parent()


@pytest.mark.usefixtures("mac")
def test_a_child_inherits_a_memory_file_without_memfd() -> None:
    with system.memory_file("test") as file:
        file.truncate(8)
        code = f"import os; os.pwrite({file.fileno()}, b'written', 0)"
        subprocess.run([sys.executable, "-c", code], pass_fds=[file.fileno()], check=True)
        assert os.pread(file.fileno(), 8, 0) == b"written\0"


def test_here_the_cgroup_of_a_container_limits_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "max").write_text("1000000\n")
    monkeypatch.setattr(system, "_CGROUP", str(tmp_path / "max"))
    assert system.memory_bytes() == 1_000_000
    (tmp_path / "max").write_text("max\n")
    assert system.memory_bytes() > 1_000_000


def test_a_lock_is_held_alone_or_shared(tmp_path: Path) -> None:
    handles = [os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(3)]
    assert system.lock(handles[0], alone=False, wait=False)
    assert system.lock(handles[1], alone=False, wait=False)
    assert not system.lock(handles[2], alone=True, wait=False)
    for handle in handles[:2]:
        os.close(handle)
    assert system.lock(handles[2], alone=True, wait=False)
    os.close(handles[2])


def test_no_other_file_makes_a_call_of_one_system() -> None:
    files = [path for path in (ROOT / "builder").rglob("*.py") if path != HERE]
    found = {
        f"{path.relative_to(ROOT)}: {name}"
        for path in files
        for name in names_in(ast.parse(path.read_text()))
        if name in LINUX_ONLY and str(path.relative_to(ROOT / "builder")) not in LIBRARIES
    }
    assert not found


def names_in(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "", *(alias.name for alias in node.names))
        elif isinstance(node, ast.Attribute):
            yield node.attr


WINDOWS = """
import os, runpy, sys
sys.platform = "win32"
for name in ("fcntl", "resource", "pwd", "termios"):
    sys.modules[name] = None
for name in ("uname", "sched_getaffinity", "killpg", "getppid"):
    delattr(os, name)
sys.argv = ["build", *sys.argv[1:]]
runpy.run_module("llm_build", run_name="__main__")
"""


@pytest.mark.parametrize("words", [[], ["plan"], ["--help"], ["--debug", "doctor"]])
def test_windows_is_told_first_what_is_supported(words: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools" / "path")}
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[0] == "error: llm-build runs on Linux and on macOS; this Python is for win32"
    assert "WSL 2" in done.stderr


def test_a_folder_named_builder_in_the_users_project_shadows_nothing(tmp_path: Path) -> None:
    for name in ("builder", "core", "app"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise ImportError('{name} of the user')\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tools" / "path"), "LLM_BUILD_STORE": str(tmp_path / "store")}
    command = [sys.executable, "-m", "llm_build", "plan", "verify=off"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
