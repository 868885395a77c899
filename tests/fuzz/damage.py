"""Damage to a file: bytes flipped, cut, put in and moved; and what is no file in the place of one."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

_PIECES = [
    b"\0", b"\xff", b"\xff\xfe", b"\xef\xbb\xbf", b"\n", b"\r", b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\",
    b"9" * 5000, b"\0" * 64, b"\xff" * 8, b"NaN", b"1e999", b"version https://git-lfs.github.com/spec/v1\n",
    b"PK\x03\x04", b"\xed\xa0\x80",
]  # fmt: skip


def spoil_bytes(rng: Random, data: bytes) -> bytes:
    """One to eight small changes."""
    changes = [_flip, _flip, _cut, _insert, _insert, _splice, _truncate, _number]
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        data = rng.choice(changes)(rng, data)
    return data


def _at(rng: Random, data: bytes) -> int:
    """A place, the first thousand bytes more often: most is decided there."""
    return rng.randrange(min(len(data), 1000) + 1 if rng.random() < 0.5 else len(data) + 1)


def _flip(rng: Random, data: bytes) -> bytes:
    if not data:
        return b"\0"
    at = min(_at(rng, data), len(data) - 1)
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def _cut(rng: Random, data: bytes) -> bytes:
    at = _at(rng, data)
    return data[:at] + data[at + rng.choice([1, 2, 8, 100, 4096]) :]


def _insert(rng: Random, data: bytes) -> bytes:
    at = _at(rng, data)
    return data[:at] + rng.choice(_PIECES) + data[at:]


def _splice(rng: Random, data: bytes) -> bytes:
    start, at = _at(rng, data), _at(rng, data)
    return data[:at] + data[start : start + rng.choice([8, 100, 1000])] + data[at:]


def _truncate(rng: Random, data: bytes) -> bytes:
    return data[: _at(rng, data)]


def _number(rng: Random, data: bytes) -> bytes:
    """Eight bytes of a length or an offset."""
    at = rng.choice([0, _at(rng, data)])
    number = rng.choice([0, 1, 7, 255, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, len(data)])
    return data[:at] + number.to_bytes(8, "little") + data[at + 8 :]


def put_something_else(rng: Random, path: Path) -> str:
    """Replace a file by what is none, or by an odd one. Returns what, for the report."""
    name = rng.choice(list(_OTHERS))
    remove(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _OTHERS[name](path)
    return name


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _socket(path: Path) -> None:
    """Bound from its folder: the name of a socket has at most 107 bytes."""
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as end:
            end.bind(path.name[:100])
        if len(path.name) > 100:
            os.rename(path.name[:100], path.name)
    finally:
        os.chdir(here)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "inner").write_bytes(b"x")


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _link_outside(path: Path) -> None:
    """To a file that must be read by no one, and written by no one."""
    path.symlink_to("/proc/self/environ")


_OTHERS: dict[str, Callable[[Path], None]] = {
    "nothing": lambda path: None,
    "empty": Path.touch,
    "folder": _folder,
    "empty folder": Path.mkdir,
    "pipe": os.mkfifo,
    "socket": _socket,
    "zeros": lambda path: path.symlink_to("/dev/zero"),
    "full": lambda path: path.symlink_to("/dev/full"),
    "null": lambda path: path.symlink_to("/dev/null"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "parent": lambda path: path.symlink_to(".."),
    "terabyte": _sparse,
    "outside": _link_outside,
    "noise": lambda path: path.write_bytes(os.urandom(300)) and None,
}
