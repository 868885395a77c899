"""What may run at the same time: processors, memory and GPUs are counted."""

from __future__ import annotations

from llm_build.core.step import Resources


def clamp(wanted: Resources, capacity: Resources) -> Resources:
    """The step's wishes cut to what there is at all (``capacity.memory_bytes`` 0 means unknown)."""
    memory = min(wanted.memory_bytes, capacity.memory_bytes) if capacity.memory_bytes else 0
    return Resources(min(max(wanted.cpu, 1), capacity.cpu), memory, min(wanted.gpu, capacity.gpu), wanted.custom)


def memory_warning(wanted: Resources, capacity: Resources) -> str:
    """What to tell of a step that no machine like this can hold. It is not refused: what a step declares is an estimate
    from above, and it runs with all the memory there is."""
    if not capacity.memory_bytes or wanted.memory_bytes <= capacity.memory_bytes:
        return ""
    return (
        f"needs about {wanted.memory_bytes / 1e9:.1f} GB of memory and there are {capacity.memory_bytes / 1e9:.1f} GB: "
        "it runs alone, and the system may kill it"
    )


class Ledger:
    def __init__(self, capacity: Resources) -> None:
        self.capacity = capacity
        self._free = capacity

    def fits(self, wanted: Resources) -> bool:
        free = self._free
        return wanted.cpu <= free.cpu and wanted.memory_bytes <= free.memory_bytes and wanted.gpu <= free.gpu

    def take(self, wanted: Resources) -> None:
        free = self._free
        self._free = Resources(free.cpu - wanted.cpu, free.memory_bytes - wanted.memory_bytes, free.gpu - wanted.gpu)

    def give(self, wanted: Resources) -> None:
        self.take(Resources(-wanted.cpu, -wanted.memory_bytes, -wanted.gpu))
