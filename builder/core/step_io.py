"""What a running step reads and writes. In a file of its own: the code of every step imports it, and so every key has
it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from llm_build.core.memo import Memo

Json = Any  # a JSON value: None, bool, int, float, str, list, dict


@dataclass(frozen=True, slots=True)
class File:
    """Bytes that a step may read: a whole blob, or a slice of a file (a tensor inside a checkpoint)."""

    path: Path
    digest: str  # "blake3:<hex>"
    nbytes: int
    offset: int = 0


class Out(Protocol):
    """What a running step writes to and reports through."""

    context: Mapping[str, Json]
    threads: int
    memo: Memo  # what is known of the bytes of files outside the store, by their stat; it only saves reading them again

    def path(self, name: str) -> Path:
        """Where to write the output ``name`` (its folder exists; "a/b" is allowed)."""
        ...

    def link(self, name: str, source: File) -> None:
        """Make an input blob an output too, without copying it."""
        ...

    def slice(self, name: str, digest: str, nbytes: int, of: str, offset: int) -> None:
        """Declare an output that is a slice of a watched file ("watch:<name>") or of an output ("output:<name>")."""
        ...

    def fact(self, name: str, value: Json) -> None:
        """Record a small figure with the result (shown by the report, kept in build.json)."""
        ...

    def warn(self, message: str) -> None: ...

    def progress(self, done: int, total: int, unit: str = "", label: str = "") -> None: ...


InputFiles = Mapping[str, "File | Mapping[str, File]"]
