"""What libraries for several ranks call by name: sums and gathers, through gloo on CPUs and NCCL on GPUs.

The names and arguments are those of TVM's disco (``runtime.disco.allreduce(send, kind, in_group, recv)``), whose own
functions need a runtime built with NCCL. All ranks run the same functions in the same order, and get the same
commands, so what worker 0 would broadcast is there already.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from llm_build.core.errors import UserError
from llm_build.runtime.device import Device
from llm_build.targets.peer_allreduce import SUM_NORM
from llm_build.targets.tvm_import import import_tvm

MEET_S = 100.0
_REDUCTIONS = {0: "sum", 3: "max"}  # of disco's kinds of reduction, those that the graphs here use


class Network(Protocol):
    """Tensors are TVM's, on the rank's device."""

    def all_reduce(self, send: Any, recv: Any, kind: str) -> None: ...
    def all_gather(self, send: Any, recv: Any) -> None: ...

    def enable_peer_sums(self, metadata: Mapping[str, Any], function: Callable[[str], Any]) -> bool:
        """Sum small tensors with the kernels that the library brings for it; ``function`` looks one of the library's
        functions up. Returns whether matrix products can write to the other ranks by themselves, which "decode" needs.
        All ranks call this before any other function."""


def join(rank: int, ranks: int, folder: Path, device: Device) -> Network:
    """Find the other ranks through files in ``folder``, and give TVM the functions. Before a library is loaded.

    Raises:
        UserError: torch (on a CPU) or NCCL (on a GPU) is missing.
    """
    network: Network
    if device.kind == "cpu":
        network = _Gloo(rank, ranks, folder)
    else:
        from llm_build.runtime.nccl import Nccl

        network = Nccl(rank, ranks, folder)
        import_tvm(runtime_only=True).register_global_func(SUM_NORM, network.sum_norm, override=True)
    _register(network)
    return network


def _register(network: Network) -> None:
    tvm = import_tvm(runtime_only=True)

    def all_reduce(send: Any, kind: Any, _in_group: bool, recv: Any) -> None:
        network.all_reduce(send, recv, _REDUCTIONS[kind[0]])

    def all_gather(send: Any, _in_group: bool, recv: Any) -> None:
        network.all_gather(send, recv)

    def broadcast(send: Any, _in_group: bool, recv: Any) -> None:
        recv.copyfrom(send)

    functions = {"allreduce": all_reduce, "allgather": all_gather, "broadcast_from_worker0": broadcast}
    for name, function in functions.items():
        tvm.register_global_func(f"runtime.disco.{name}", function, override=True)


class _Gloo:
    """torch.distributed on CPUs, over the tensors' own memory."""

    def __init__(self, rank: int, ranks: int, folder: Path) -> None:
        try:
            import torch
            from torch import distributed
        except ImportError as error:
            raise UserError(
                "several ranks on CPUs talk through torch.distributed, and torch is not installed", "pip install torch"
            ) from error
        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo",
            init_method=f"file://{folder / 'gloo'}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(seconds=MEET_S),
        )
        self._torch, self._distributed = torch, distributed

    def all_reduce(self, send: Any, recv: Any, kind: str) -> None:
        result = self._torch.from_dlpack(recv)
        result.copy_(self._torch.from_dlpack(send))
        kinds = self._distributed.ReduceOp
        self._distributed.all_reduce(result, {"sum": kinds.SUM, "max": kinds.MAX}[kind])

    def all_gather(self, send: Any, recv: Any) -> None:
        parts = self._torch.from_dlpack(recv).chunk(self._distributed.get_world_size())
        self._distributed.all_gather(list(parts), self._torch.from_dlpack(send))

    def enable_peer_sums(self, metadata: Mapping[str, Any], function: Callable[[str], Any]) -> bool:
        """Libraries for CPUs bring nothing, and send nothing."""
        return True
