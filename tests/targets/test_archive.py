"""Static libraries: the bytes that ar and llvm-ar write, the same each time."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from llm_build.formats.archive import defined, static_library
from tests.conftest import Shell
from tests.targets.conftest import dist, program
from tests.targets.objects import objects_of


@pytest.mark.parametrize(
    ("target", "writer"), [("ios", ["llvm-ar", "--format=darwin"]), ("android", ["llvm-ar", "--format=gnu"])]
)
def test_as_llvm_writes_it(built: Shell, tmp_path: Path, target: str, writer: list[str]):
    name = f"demo-q4f16_1-{target}"
    objects = {f"{i}.o": data for i, data in enumerate(objects_of(dist(built, name) / f"{name}.tar"))}
    for member, data in objects.items():
        (tmp_path / member).write_bytes(data)
    command = [program(writer[0], "apt-get install llvm"), *writer[1:], "rcsD", "theirs.a", *objects]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert static_library(objects) == (tmp_path / "theirs.a").read_bytes()


def test_symbols_of_an_elf_object_are_those_that_nm_shows(tmp_path: Path):
    if shutil.which("cc") is None or shutil.which("nm") is None:
        pytest.skip("no C compiler and nm")
    (tmp_path / "a.c").write_text("int one; static int two; extern int three; int four(void) { return three + two; }")
    subprocess.run(["cc", "-c", "a.c"], cwd=tmp_path, check=True)
    shown = subprocess.run(
        ["nm", "-g", "--defined-only", "a.o"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert set(defined((tmp_path / "a.o").read_bytes())) == {line.split()[-1] for line in shown.stdout.splitlines()}


def test_a_mach_o_object_by_hand():
    """One external symbol in a section, one undefined, one local, one of a debugger."""
    names = b"\0_here\0_there\0_mine\0_seen\0"
    entries = [(1, 0x0F, 1), (7, 0x01, 0), (14, 0x0E, 1), (20, 0x2F, 1)]
    table = b"".join(struct.pack("<IBBHQ", name, kind, section, 0, 0) for name, kind, section in entries)
    at = 32 + 24
    data = struct.pack("<8I", 0xFEEDFACF, 0x0100000C, 0, 1, 1, 24, 0, 0)
    data += struct.pack("<6I", 2, 24, at, len(entries), at + len(table), len(names)) + table + names
    assert defined(data) == ["_here"]


def test_what_is_no_object_is_refused():
    with pytest.raises(ValueError, match="neither a Mach-O nor an ELF object"):
        static_library({"a.o": b"BC\xc0\xde no object"})
