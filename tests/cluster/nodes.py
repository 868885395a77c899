"""A Ray cluster on this machine: a head without processors, and nodes whose processes can be killed like a machine."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.conftest import ROOT

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
OBJECT_STORE_BYTES = 80 << 20


class Nodes:
    """``count`` nodes of one processor, each with a store of its own below ``folder``."""

    def __init__(self, folder: Path, count: int = 3, **resources: float) -> None:
        from ray.cluster_utils import Cluster

        self.folder = folder
        head: dict[str, Any] = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        head["env_vars"] = {"PYTHONPATH": str(ROOT / "tools" / "path")}
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address: str = self.cluster.address
        self.living: list[Any] = []
        self.started = 0
        for _ in range(count):
            self.start(**resources)

    def start(self, **resources: float) -> None:
        """One more node, with a new and empty store."""
        self.started += 1
        environment = {"LLM_BUILD_STORE": str(self.store(self.started)), "PYTHONPATH": str(ROOT / "tools" / "path")}
        node = self.cluster.add_node(
            num_cpus=1, env_vars=environment, resources=resources, object_store_memory=OBJECT_STORE_BYTES
        )
        self.living.append(node)

    def store(self, number: int) -> Path:
        return self.folder / f"node{number}" / "store"

    def kill(self, index: int) -> int:
        """SIGKILL of a node's raylet and of all that it started, the raylet first; returns how many processes."""
        node = self.living.pop(index)
        pids = family(node.all_processes["raylet"][0].process.pid)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.cluster.remove_node(node, allow_graceful=False)
        return len(pids)

    def __enter__(self) -> Nodes:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cluster.shutdown()


def family(pid: int) -> list[int]:
    """A process and all its descendants, parents first."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(each for child in children for each in family(int(child)))]
