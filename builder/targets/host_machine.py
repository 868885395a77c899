"""What a measurement is of: this machine, as far as it changes how fast a library runs. Stdlib only."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

from llm_build.core import system
from llm_build.core.errors import UserError
from llm_build.targets import cpu

_MODEL_KEYS = ("model name", "Model", "CPU implementer")  # of /proc/cpuinfo: x86, some ARM boards, other ARM
_OS_RELEASE = Path("/etc/os-release")


def describe(gpu: bool) -> dict[str, object]:
    """The machine's identity: the same after a restart, another after a new kernel, driver or size. ``gpu``: whether
    the library runs on one."""
    found: dict[str, object] = {
        "cpu": _cpu_model(),
        "cores": system.cores(),
        "instructions": instructions(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        "system": f"{platform.system()} {platform.release()}, {_distribution()}",
    }
    return {**found, "gpu": _gpu()} if gpu else found


def _cpu_model() -> str:
    """The processor's name; that of its instruction set where the kernel knows none."""
    try:
        pairs = [line.partition(":") for line in cpu.CPUINFO.read_text().splitlines()]
    except OSError:
        pairs = []
    known = {key.strip(): value.strip() for key, _, value in reversed(pairs)}  # the first processor's
    return next((known[key] for key in _MODEL_KEYS if key in known), platform.machine())


def instructions() -> str:
    try:
        host = cpu.describe_host()
    except UserError:
        return platform.machine()
    return " +".join([str(host["cpu"]), *map(str, host["features"])])  # type: ignore[call-overload]


def _distribution() -> str:
    try:
        lines = _OS_RELEASE.read_text().splitlines()
    except OSError:
        return "unknown"
    names = [line.partition("=")[2].strip('"') for line in lines if line.startswith("PRETTY_NAME=")]
    return names[0] if names else "unknown"


def _gpu() -> str:
    """The first NVIDIA GPU and its driver: "NVIDIA H100 80GB HBM3, 580.65.06, 81559 MiB"."""
    command = ["nvidia-smi", "--id=0", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none that nvidia-smi finds"
