"""What is inside the objects of a library."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path


def objects_of(path: Path) -> list[bytes]:
    with tarfile.open(path) as archive:
        return [archive.extractfile(member).read() for member in archive.getmembers()]


def opencl_of(data: bytes) -> str:
    """The kernels' text, which is one."""
    (found,) = re.findall(rb"// Function: [\t\n -~]*\n}\n", data)
    return found.decode()


def metal_of(data: bytes) -> list[str]:
    """The text of each kernel."""
    pattern = rb"#include <metal_stdlib>(?:(?!#include <metal_stdlib>)[\t\n -~])*\n}\n"
    return [text.decode() for text in re.findall(pattern, data)]
