"""Libraries for arm64, made on whatever this machine is. tools.arm64 runs them, under emulation."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from llm_build.steps import lower
from llm_build.targets import link
from tests.tvm import tiny

ELF, AARCH64, OBJECT, SHARED = b"\x7fELF", 183, 1, 3  # elf.h: EM_AARCH64, ET_REL, ET_DYN


def kind_of(content: bytes) -> tuple[int, int]:
    """(type, machine) of an ELF file."""
    assert content[:4] == ELF
    assert content[4:6] == b"\x02\x01"  # 64 bits, little-endian
    return int.from_bytes(content[16:18], "little"), int.from_bytes(content[18:20], "little")


@pytest.mark.skipif(link.find_linker("aarch64-linux-gnu") is None, reason="no linker for arm64")
def test_a_shared_library(tmp_path: Path):
    tiny.compile_library(tmp_path, tiny.BASE, tiny.SCHEMES["q4f16_1"], "arm64")
    content = (tmp_path / "library.so").read_bytes()
    assert kind_of(content) == (SHARED, AARCH64)
    assert b"__tvm_ffi" in content


class Warned(tiny.FolderOut):
    def warn(self, message: str) -> None:
        self.labels.append(f"warning: {message}")


def test_objects_where_nothing_links_them(tmp_path: Path):
    params = tiny.lower_params(tiny.BASE, tiny.SCHEMES["q4f16_1"], "arm64")
    out = Warned(tmp_path)
    lower.run({**params, "target": {**params["target"], "library": "tar"}}, {}, out)
    with tarfile.open(tmp_path / "library.tar") as archive:
        objects = [archive.extractfile(member).read() for member in archive]
    assert objects
    assert {kind_of(content) for content in objects} == {(OBJECT, AARCH64)}
    assert "nothing on this machine links a library for aarch64-linux-gnu" in out.labels[-1]
