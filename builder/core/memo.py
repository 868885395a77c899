"""Facts remembered between builds (file digests by stat): an append-only log that forgives torn lines."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from llm_build.core.disk import read_whole

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
COMPACT_FROM_LINES = 20_000
RACY_NS = 50_000_000  # a file younger than this may change again within one tick of its clock: not remembered


class Memo:
    """``{key: value}`` strings in one file. Every line is one append, so concurrent builds only add to each other; a
    lost or torn line costs a recomputation, never a wrong answer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, str] | None = None

    def get(self, key: str) -> str | None:
        return self._load().get(key)

    def put(self, key: str, value: str) -> None:
        self._load()[key] = value
        line = "\n" + json.dumps([key, value])  # a leading newline: an earlier torn line stays alone
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, _APPEND, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        except OSError:
            pass  # a store that cannot be written only forgets

    def _load(self) -> dict[str, str]:
        if self._known is None:
            try:
                lines = read_whole(self.path).decode("utf-8", "replace").split("\n")
            except OSError:
                lines = []
            self._known = dict(pair for line in lines if (pair := _parse(line)))
            if len(lines) > COMPACT_FROM_LINES:
                self._compact(lines)
        return self._known

    def _compact(self, lines: list[str]) -> None:
        """Keep the newer half."""
        kept = lines[len(lines) // 2 :]
        temporary = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        try:
            temporary.write_text("\n".join(kept), "utf-8")
            os.replace(temporary, self.path)
        except OSError:
            temporary.unlink(missing_ok=True)


def _parse(line: str) -> tuple[str, str] | None:
    try:
        key, value = json.loads(line)
    except (ValueError, TypeError, RecursionError):
        return None
    return (key, value) if isinstance(key, str) and isinstance(value, str) else None


def stat_key(status: os.stat_result) -> str:
    """What a file's digest is remembered by: device, inode, size, mtime and ctime (ns)."""
    return f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"


def is_settled(status: os.stat_result) -> bool:
    """Whether a change from now on would show in the file's times."""
    return time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > RACY_NS
