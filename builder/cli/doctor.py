"""`build doctor`: the tools and devices found here, and what each missing one is needed for."""

from __future__ import annotations

import json
import os
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from builder.app.request import composition_cache
from builder.cli.arguments import Arguments
from builder.config.compose import compose
from builder.core.filestore import FileStore, open_store
from builder.core.units import format_bytes
from builder.planner import resolve

ROOM_BYTES = 1 << 28  # less than this and even the demo may not fit
Row = dict[str, str]  # name, status (ok, missing, bad), found, needed for

PACKAGES = {
    "apache-tvm": "lower, verify, generate",
    "torch": "verify, .bin checkpoints",
    "transformers": "verify",
    "tokenizers": "verify, generate",
    "hydra-core": "every command",
    "numpy": "quantize, verify, generate",
    "blake3": "the store",
    "huggingface_hub": "hf:// sources",
}


def show(arguments: Arguments) -> int:
    """With --store also every byte of the store is read; returns 1 when something that a build needs is not right."""
    composed = compose(arguments.overrides, composition_cache(), arguments.options.config_dir)
    places = resolve.places(composed)
    rows = [*packages(), linker(), arm_linker(), *programs(), processor(), memory(), disk(places.store), *gpus()]
    if arguments.options.store or arguments.options.repair:
        rows += store_rows(open_store(places.store), arguments.options.repair)
    if arguments.options.json:
        json.dump({"checks": rows}, sys.stdout, indent=1)
        print()
    else:
        for row in rows:
            mark = {"ok": "✓", "missing": "–", "bad": "✗"}[row["status"]]
            print(f"{mark} {row['name']:<18} {row['found']}" + (f"   ({row['for']})" if row["status"] != "ok" else ""))
    return 1 if any(row["status"] == "bad" for row in rows) else 0


def row(name: str, found: str, used_for: str, status: str = "ok") -> Row:
    return {"name": name, "status": status, "found": found, "for": used_for}


def packages() -> list[Row]:
    rows = []
    for name, used_for in PACKAGES.items():
        try:
            rows.append(row(name, version(name), used_for))
        except PackageNotFoundError:
            rows.append(row(name, "not installed: pip install " + name, f"needed for {used_for}", "bad"))
    return rows


def linker() -> Row:
    """The linker that lower would use."""
    from builder.targets.link import DRIVERS, LINKERS, find_linker

    found = find_linker()
    if found is None:
        return row(
            "linker",
            f"none of {', '.join(DRIVERS + LINKERS)}: apt-get install gcc, or pip install ziglang",
            "needed for libraries that are shared objects",
            "bad",
        )
    return row("linker", " ".join(found), "libraries that are shared objects")


def arm_linker() -> Row:
    """The linker for libraries of target.cpu=arm64."""
    from builder.targets.cpu import ARM, LINUX
    from builder.targets.link import find_linker

    found = find_linker(LINUX[ARM])
    without = "target.cpu=arm64 builds without it, its library as objects"
    if found is None:
        return row("linker for arm64", "none: apt-get install lld, or pip install ziglang", without, "missing")
    return row("linker for arm64", " ".join(found), "target.cpu=arm64")


def programs() -> list[Row]:
    """What single targets need beside Python packages and a linker."""
    from builder.targets.tools import OPTIONAL, REQUIRED

    rows = []
    for tool in (*REQUIRED, *OPTIONAL):
        found = tool.find()
        if found is None:
            said = f"{tool.missing}; {tool.without}"
            rows.append(row(tool.name, f"none: {tool.install}", said, "missing"))
        else:
            rows.append(row(tool.name, f"{tool.version()} {found}".strip(), " ".join(tool.needed) or tool.without))
    return rows


def processor() -> Row:
    from builder.targets.cpu import describe_host

    host = describe_host()
    extra = host["features"]
    assert isinstance(extra, list)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return row("cpu", f"{cores} cores, {' +'.join([str(host['cpu']), *extra])}", "target=cpu")


def memory() -> Row:
    nbytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return row("memory", format_bytes(nbytes), "every step")


def disk(store: Path) -> Row:
    """Room where the store lies; a build of a model needs about its quantized size."""
    there = next(p for p in (store, *store.parents) if p.exists())
    free = shutil.disk_usage(there).free
    writable = os.access(there, os.W_OK)
    if not writable:
        return row("store", f"{there} is not writable", "store.path=... names another", "bad")
    low = free < ROOM_BYTES
    return row(
        "store", f"{store}: {format_bytes(free)} free", "little room: build gc" if low else "", "bad" if low else "ok"
    )


def gpus() -> list[Row]:
    """Devices that libraries run on here."""
    driver = Path("/proc/driver/nvidia/version")
    if not driver.exists():
        return [row("nvidia driver", "none", "needed to run libraries of target=cuda, not to build them", "missing")]
    found = [row("nvidia driver", driver.read_text().splitlines()[0], "running libraries of target=cuda")]
    from builder.targets import gpus as machine

    names = machine.names()
    kinds = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    found.append(row("gpus", ", ".join(kinds) or "none that nvidia-smi shows", "target.gpus", "ok" if names else "bad"))
    return [*found, *(several(machine.in_words(machine.links()), machine.find_nccl()) if len(names) > 1 else ())]


def several(links: str, nccl: tuple[Path, str] | None) -> list[Row]:
    """What a model on several GPUs needs."""
    used_for = "running libraries of target.gpus=2 and more"
    if nccl is None:
        said = row("nccl", "none: pip install nvidia-nccl-cu13", f"needed for {used_for}", "missing")
    else:
        said = row("nccl", f"{nccl[0]} ({nccl[1]})", used_for)
    return [row("links of gpus", links or "unknown: nvidia-smi topo -m says nothing", used_for), said]


def store_rows(store: FileStore, repair: bool) -> list[Row]:
    """What is in the store, and every fault found: which steps it touches, and what to do about it."""
    from builder.core.check import check

    found = check(store, told if sys.stderr.isatty() else None, repair)
    said = f"{found.records} results, {found.blobs} files, {format_bytes(found.nbytes)} read"
    verdict = f"{len(found.faults)} fault{'s' * (len(found.faults) > 1)}" if found.faults else "whole"
    rows = [row("store content", f"{said}, {verdict}", "every step")]
    for fault in found.faults:
        more = f" and {len(fault.steps) - 3} more" if len(fault.steps) > 3 else ""
        touched = f"{', '.join(fault.steps[:3])}{more}" if fault.steps else "no result"
        what = {"damaged": "file with other bytes", "missing": "file that is not there", "garbage": "damaged record"}
        kept = "dropped; " if repair else ""
        status = "missing" if repair else "bad"
        rows.append(
            row("store: " + fault.kind, f"{what[fault.kind]}: {fault.name}", f"{kept}touches {touched}", status)
        )
    if not found.whole:
        following = "build: makes again what was dropped" if repair else "build doctor --store --repair"
        rows.append(row("store: next", following, "drops what is damaged, the next build makes it again", "ok"))
    if found.leftovers:
        rows.append(
            row("store: leftovers", f"{len(found.leftovers)} of killed builds", "the next build clears them", "missing")
        )
    return rows


def told(done: int, total: int) -> None:
    """How far the reading is, on one line of a terminal that is wiped in the end."""
    end = "\r\033[K" if done == total else "\r"
    print(f"\rreading {format_bytes(done)} of {format_bytes(total)}", end=end, file=sys.stderr, flush=True)
