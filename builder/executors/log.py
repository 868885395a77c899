"""The log of a step that runs on another machine, piece by piece into the same file on this one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from llm_build.core.step_io import Json

_LOG_CHUNK = 1 << 18


def write_log(path: Path, text: str, at: int) -> None:
    """Put a piece of a log in its place; a log that begins anew replaces the old one."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | (0 if at else os.O_TRUNC), 0o644)
    try:
        os.pwrite(handle, text.encode("utf-8", "surrogateescape"), at)
    finally:
        os.close(handle)


class Tail:
    """What has been added to a log since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def read(self) -> list[Json]:
        frames = []
        with suppress(OSError), open(self._path, "rb") as file:
            if os.fstat(file.fileno()).st_size < self._at:
                self._at = 0  # the step was started once more, with a new log
            file.seek(self._at)
            while data := file.read(_LOG_CHUNK):
                frames.append({"log": data.decode("utf-8", "surrogateescape"), "at": self._at})
                self._at += len(data)
        return frames
