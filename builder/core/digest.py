"""Digests, written "<algorithm>:<hex>": sha256 for keys and small things, blake3 for the bytes of results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from llm_build.core.errors import StepError
from llm_build.core.small_file import check_not_hollow, open_file

CHUNK_BYTES = 1 << 20
MMAP_FROM_BYTES = 4 << 20  # below this a plain read is as fast, and a truncated file cannot kill the process

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def canonical(value: object) -> bytes:
    """JSON with sorted keys, no spaces, ASCII only: equal values give equal bytes. ValueError for NaN and infinity."""
    return _ENCODER.encode(value).encode("ascii")


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of_names(digests: Mapping[str, str]) -> str:
    """Digest of a group of contents, ``{name: digest}``."""
    return "sha256:" + sha256_hex(canonical(dict(digests)))


def digest_of_bytes(data: bytes) -> str:
    from blake3 import blake3

    return "blake3:" + str(blake3(data).hexdigest())


def digest_of_file(path: Path, threads: int = 0) -> str:
    """blake3 of a whole file. ``threads`` 0 uses every core. OSError for what is no file, or a hollow one
    (core/small_file)."""
    from blake3 import blake3

    hasher = blake3(max_threads=threads or blake3.AUTO)
    with open_file(path) as file:
        check_not_hollow(file.fileno(), path)
        if os.fstat(file.fileno()).st_size >= MMAP_FROM_BYTES:
            hasher.update_mmap(path)
        else:
            while chunk := file.read(CHUNK_BYTES):
                hasher.update(chunk)
    return "blake3:" + str(hasher.hexdigest())


def sha256_of_file(path: Path) -> str:
    """sha256 of a whole file, hex. OSError as digest_of_file."""
    hasher = hashlib.sha256()
    with open_file(path) as file:
        check_not_hollow(file.fileno(), path)
        while chunk := file.read(CHUNK_BYTES):
            hasher.update(chunk)
    return hasher.hexdigest()


def digest_of_tree(folder: Path) -> str:
    """Digest of the names and contents of a folder's files, all small."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return digest_of_names({path.relative_to(folder).as_posix(): sha256_hex(path.read_bytes()) for path in files})


def check_code(path: Path, digest: str) -> None:
    """Before a library is loaded. Whoever can write to a store can put other bytes under a name, with the same size and
    time, and what looks at those alone would not see it.

    Raises:
        StepError: the file has other bytes than those that were made.
    """
    if digest_of_file(path) != digest:
        raise StepError(
            f"{path} has other bytes than those that were made: it is not loaded", "build doctor --store --repair"
        )
