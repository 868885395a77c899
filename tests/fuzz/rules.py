"""What reading a file may not do: run anything, write outside its folders, reach a network, take hours or gigabytes.

The watch is an audit hook (https://docs.python.org/3/library/audit_events.html): it sees what Python code does, in this
process. What C code might write outside shows in the names that lie around the folders of the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

PAYLOAD = "touch fuzz-was-executed"  # where something runs it, the file lies in the current folder
CANARY = "fuzz-was-executed"
CPU_SECONDS = 10.0
WALL_SECONDS = 20.0  # after which a case that uses no processor time waits for something that never comes
IDLE_SECONDS, IDLE_CPU_SECONDS = 10.0, 0.02  # what "uses none" is, on a busy machine too
MEMORY_BYTES = 2 << 30
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NOWHERE = ("/dev/null", "/proc/self/clear_refs")
_PROGRAMS = ("jinja_process.py", "tokenizer_process.py")  # of ours, which read files for us under limits
_RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "pty.spawn", "os.fork", "os.forkpty")
_NETWORK = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.bind", "socket.sendto")
_CODE = (".py", ".pyc", ".pth")


def _place_of(name: str) -> str:
    """Where a name lies, which may be a link itself."""
    path = os.path.abspath(name)
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


class Watch:
    """``breaches``: what was seen while it was armed, in words. ``root``: below it anything may be written, and nothing
    may be run."""

    def __init__(self, root: Path) -> None:
        self.root = os.path.realpath(root) + os.sep
        self.breaches: list[str] = []
        self.armed = False
        self._checks = self._table()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.armed or (check := self._checks.get(event)) is None:
            return
        self.armed = False  # what the check itself does is no breach
        try:
            check(event, args)
        finally:
            self.armed = True

    def _table(self) -> dict[str, Callable[[str, tuple[Any, ...]], None]]:
        first = dict.fromkeys(
            ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown"), self._change
        )
        both = dict.fromkeys(("os.rename", "os.link", "os.symlink"), self._move)
        return {
            **first, **both, **dict.fromkeys(_RUNS, self._forbidden), **dict.fromkeys(_NETWORK, self._network),
            "open": self._open, "subprocess.Popen": self._program, "ctypes.dlopen": self._library, "exec": self._exec,
            "import": self._import, "pickle.find_class": self._forbidden, "os.utime": self._change,
        }  # fmt: skip

    def _breach(self, what: str) -> None:
        self.breaches.append(what[:300])

    def _forbidden(self, event: str, args: tuple[Any, ...]) -> None:
        self._breach(f"{event} {args!r}")

    def _network(self, event: str, args: tuple[Any, ...]) -> None:
        self._breach(f"{event} {args[1:]!r}")

    def _open(self, event: str, args: tuple[Any, ...]) -> None:
        path, _, flags = args
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        name = os.fsdecode(path)
        if flags and flags & _WRITES:
            where = _place_of(name) if flags & os.O_NOFOLLOW else os.path.realpath(name)
            inside = where in _NOWHERE or where.startswith((self.root, "/proc/self/"))
            if not inside and os.path.isdir(os.path.dirname(where)):  # below a device nothing can be made
                self._breach(f"writes {where}")
        elif name.endswith(_CODE) and os.path.realpath(name).startswith(self.root):
            self._breach(f"reads code: {name}")

    def _change(self, event: str, args: tuple[Any, ...]) -> None:
        self._check_place(event, args[0], args[-1])

    def _move(self, event: str, args: tuple[Any, ...]) -> None:
        self._check_place(event, args[1], args[-1])

    def _check_place(self, event: str, path: Any, folder: Any) -> None:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return
        name = os.fsdecode(path)
        if isinstance(folder, int) and folder >= 0 and event != "os.truncate":
            name = os.path.join(os.path.realpath(f"/proc/self/fd/{folder}"), name)
        if not _place_of(name).startswith(self.root):
            self._breach(f"{event} {name}")

    def _program(self, event: str, args: tuple[Any, ...]) -> None:
        words = [os.fsdecode(word) for word in args[1]] if not isinstance(args[1], (str, bytes)) else [str(args[1])]
        ours = words[:2] == [sys.executable, "-P"] and os.path.basename(words[2]) in _PROGRAMS
        if not ours:
            self._breach(f"runs {words}")

    def _library(self, event: str, args: tuple[Any, ...]) -> None:
        if args[0] and os.path.realpath(os.fsdecode(args[0])).startswith(self.root):
            self._breach(f"loads {args[0]}")

    def _exec(self, event: str, args: tuple[Any, ...]) -> None:
        name = getattr(args[0], "co_filename", "")
        if os.path.realpath(name).startswith(self.root) and not name.startswith("<"):
            self._breach(f"executes {name}")

    def _import(self, event: str, args: tuple[Any, ...]) -> None:
        if args[1] and os.path.realpath(args[1]).startswith(self.root):
            self._breach(f"imports {args[1]}")
