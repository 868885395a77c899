"""This machine's NVIDIA GPUs, the links between them, and NCCL, which adds up what they hold. Stdlib only."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from shutil import which

_NCCL = "libnccl.so.2"
FOLDERS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
_WAIT_S = 20
_LINKS = {  # of the legend of nvidia-smi topo -m
    "NV": "NVLink", "PIX": "one PCIe bridge", "PXB": "several PCIe bridges", "PHB": "the PCIe host bridge",
    "NODE": "PCIe host bridges of one NUMA node", "SYS": "the link between NUMA nodes",
}  # fmt: skip


def run_nvidia_smi(arguments: Sequence[str]) -> str:
    """What nvidia-smi prints, "" where there is none or it fails."""
    program = which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False, timeout=_WAIT_S)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout if done.returncode == 0 else ""


def names() -> list[str]:
    """["NVIDIA H100 80GB HBM3", ...]"""
    return re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", run_nvidia_smi(["-L"]), re.MULTILINE)


def count() -> int:
    """GPUs of this machine, 0 without a driver."""
    return len(names())


def links() -> list[tuple[int, int, str]]:
    """(one GPU, another, how nvidia-smi calls what joins them: NV18, PIX, SYS), each pair once."""
    return read_links(run_nvidia_smi(["topo", "-m"]))


def read_links(text: str) -> list[tuple[int, int, str]]:
    """The matrix that ``nvidia-smi topo -m`` prints, GPUs only."""
    rows = [line.split() for line in re.sub(r"\x1b\[[\d;]*m", "", text).splitlines()]
    header = next((row for row in rows if row and row[0] == "GPU0" and "GPU1" in row and "X" not in row), [])
    columns = [int(name[3:]) for name in header if re.fullmatch(r"GPU\d+", name)]
    found = []
    for row in rows:
        if row and re.fullmatch(r"GPU\d+", row[0]) and "X" in row:
            one = int(row[0][3:])
            found += [(one, other, kind) for other, kind in zip(columns, row[1:], strict=False) if one < other]
    return found


def describe_links(found: Sequence[tuple[int, int, str]]) -> str:
    """NVLink (NV18) between all; or NVLink (NV12) 0-1 2-3, the link between NUMA nodes (SYS) 0-2 0-3 1-2 1-3."""
    by_kind: dict[str, list[str]] = {}
    for one, other, kind in found:
        by_kind.setdefault(kind, []).append(f"{one}-{other}")
    parts = []
    for kind, pairs in by_kind.items():
        name = _LINKS.get("NV" if kind.startswith("NV") else kind)
        named = f"{name} ({kind})" if name else kind
        parts.append(f"{named} {'between all' if len(by_kind) == 1 else ' '.join(pairs)}")
    return ", ".join(parts)


def find_nccl() -> tuple[Path, str] | None:
    """NCCL's library and where it was found: PyPI's nvidia-nccl (which PyTorch for CUDA brings), or the system's."""
    for entry in sys.path:
        for path in (Path(entry, "nvidia", "nccl", "lib", _NCCL), Path(entry, "torch", "lib", _NCCL)):
            if entry and path.exists():
                return path, f"the Python package {'nvidia-nccl' if 'nccl' in path.parts else 'torch'}"
    for folder in FOLDERS:
        if (path := Path(folder, _NCCL)).exists():
            return path, folder
    return None
