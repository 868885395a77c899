"""The tools and devices found here, and what each missing one is needed for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from llm_build.core import system
from llm_build.core.filestore import FileStore
from llm_build.core.units import count_of, format_bytes

_ROOM_BYTES = 1 << 28  # less than this and even the demo may not fit
Row = dict[str, str]  # name, status (ok, missing, bad), found, needed for

_PACKAGES = {
    "apache-tvm": "lower, verify, generate",
    "torch": "verify, .bin checkpoints",
    "transformers": "verify",
    "tokenizers": "verify, generate",
    "hydra-core": "every command",
    "numpy": "quantize, verify, generate",
    "blake3": "the store",
    "huggingface_hub": "hf:// sources",
}


def diagnose(store: Path) -> list[Row]:
    """Tools, devices and disk. ``store``: where the results are kept."""
    return [*_packages(), _linker(), _arm_linker(), *_programs(), _processor(), _memory(), _disk(store), *_gpus()]


def _row(name: str, found: str, used_for: str, status: str = "ok") -> Row:
    return {"name": name, "status": status, "found": found, "for": used_for}


def _packages() -> list[Row]:
    rows = []
    for name, used_for in _PACKAGES.items():
        try:
            rows.append(_row(name, version(name), used_for))
        except PackageNotFoundError:
            rows.append(_row(name, "not installed: pip install " + name, f"needed for {used_for}", "bad"))
    return rows


def _linker() -> Row:
    """The linker that lower would use."""
    from llm_build.targets.link import DRIVERS, LINKERS, find_linker

    command = find_linker()
    if command is None:
        return _row(
            "linker",
            f"none of {', '.join(DRIVERS + LINKERS)}: apt-get install gcc, or pip install ziglang",
            "needed for libraries that are shared objects",
            "bad",
        )
    return _row("linker", " ".join(command), "libraries that are shared objects")


def _arm_linker() -> Row:
    """The linker for libraries of target.cpu=arm64."""
    from llm_build.targets.cpu import ARM, LINUX
    from llm_build.targets.link import find_linker

    command = find_linker(LINUX[ARM])
    without = "target.cpu=arm64 builds without it, its library as objects"
    if command is None:
        return _row("linker for arm64", "none: apt-get install lld, or pip install ziglang", without, "missing")
    return _row("linker for arm64", " ".join(command), "target.cpu=arm64")


def _programs() -> list[Row]:
    """What single targets need beside Python packages and a linker."""
    from llm_build.targets.tools import OPTIONAL, REQUIRED

    rows = []
    for tool in (*REQUIRED, *OPTIONAL):
        path = tool.find()
        if path is None:
            used_for = f"{tool.missing}; {tool.without}"
            rows.append(_row(tool.name, f"none: {tool.install}", used_for, "missing"))
        else:
            rows.append(_row(tool.name, f"{tool.version()} {path}".strip(), " ".join(tool.needed) or tool.without))
    return rows


def _processor() -> Row:
    from llm_build.targets.cpu import describe_host

    host = describe_host()
    extra = host["features"]
    assert isinstance(extra, list)
    cores = system.cores()
    return _row("cpu", f"{count_of(cores, 'core')}, {' +'.join([str(host['cpu']), *extra])}", "target=cpu")


def _memory() -> Row:
    return _row("memory", format_bytes(system.memory_bytes()), "every step")


def _disk(store: Path) -> Row:
    """Room where the store lies; a build of a model needs about its quantized size."""
    existing = next(p for p in (store, *store.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    writable = os.access(existing, os.W_OK)
    if not writable:
        return _row("store", f"{existing} is not writable", "store.path=... names another", "bad")
    low = free < _ROOM_BYTES
    return _row(
        "store", f"{store}: {format_bytes(free)} free", "little room: build gc" if low else "", "bad" if low else "ok"
    )


def _gpus() -> list[Row]:
    """Devices that libraries run on here."""
    driver = Path("/proc/driver/nvidia/version")
    if not driver.exists():
        return [_row("nvidia driver", "none", "needed to run libraries of target=cuda, not to build them", "missing")]
    rows = [_row("nvidia driver", driver.read_text().splitlines()[0], "running libraries of target=cuda")]
    from llm_build.targets import nvidia_gpus as machine

    names = machine.names()
    kinds = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    rows.append(_row("gpus", ", ".join(kinds) or "none that nvidia-smi shows", "target.gpus", "ok" if names else "bad"))
    return [
        *rows,
        *(rows_of_several_gpus(machine.describe_links(machine.links()), machine.find_nccl()) if len(names) > 1 else ()),
    ]


def rows_of_several_gpus(links: str, nccl: tuple[Path, str] | None) -> list[Row]:
    """What a model on several GPUs needs."""
    used_for = "running libraries of target.gpus=2 and more"
    if nccl is None:
        row = _row("nccl", "none: pip install nvidia-nccl-cu13", f"needed for {used_for}", "missing")
    else:
        row = _row("nccl", f"{nccl[0]} ({nccl[1]})", used_for)
    return [_row("links of gpus", links or "unknown: nvidia-smi topo -m says nothing", used_for), row]


def check_store(store: FileStore, repair: bool, progress: Callable[[int, int], None] | None = None) -> list[Row]:
    """What is in the store, and every fault found: which steps it touches, and what to do about it."""
    from llm_build.core.check import check

    result = check(store, progress, repair)
    counts = f"{count_of(result.records, 'result')}, {count_of(result.blobs, 'file')}"
    content = f"{counts}, {format_bytes(result.nbytes)} read"
    verdict = count_of(len(result.faults), "fault") if result.faults else "whole"
    rows = [_row("store content", f"{content}, {verdict}", "every step")]
    for fault in result.faults:
        more = f" and {len(fault.steps) - 3} more" if len(fault.steps) > 3 else ""
        touched = f"{', '.join(fault.steps[:3])}{more}" if fault.steps else "no result"
        what = {"damaged": "file with other bytes", "missing": "file that is not there", "garbage": "damaged record"}
        verb = "dropped; " if repair else ""
        status = "missing" if repair else "bad"
        rows.append(
            _row("store: " + fault.kind, f"{what[fault.kind]}: {fault.name}", f"{verb}touches {touched}", status)
        )
    if not result.whole:
        following = "build: makes again what was dropped" if repair else "build doctor --store --repair"
        rows.append(_row("store: next", following, "drops what is damaged, the next build makes it again", "ok"))
    if result.leftovers:
        rows.append(
            _row(
                "store: leftovers", f"{len(result.leftovers)} of killed builds", "the next build clears them", "missing"
            )
        )
    return rows
