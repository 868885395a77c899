"""What lowering loads by name: code generators, kernels, and the passes that only some libraries need.

The tables hold module names, not modules. One library loads what its graph and its target use, and the planner counts
just that in the key of its `lower` step (``modules_of``): a GPU kernel makes no CPU library stale. Standard library
only, as the planner imports it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any

from llm_build import ops
from llm_build.targets.planned_tools import LINKERS

_PASSES = "llm_build.lowering.passes"
_SCHEDULES = "llm_build.lowering.schedules"
BACKENDS: dict[str, str] = {  # kind of target -> its code generator
    "cpu": "llm_build.lowering.backends.cpu",
    "cuda": "llm_build.lowering.backends.cuda",
    "metal": "llm_build.lowering.backends.metal",
    "opencl": "llm_build.lowering.backends.opencl",
    "webgpu": "llm_build.lowering.backends.webgpu",
}
_CACHE_KERNELS = ("attention", "cache", "sampling")  # modules of schedules/<machine> that every model needs
KERNELS: dict[str, dict[str, str]] = {  # machine -> operator -> module of schedules/<machine>, and function
    "cpu": {
        "embedding": "embedding:embedding",
        "linear": "linear:linear",
        "rms_norm": "norms:rms_norm",
        "qk_norm": "norms:qk_norm",
        "layer_norm": "norms:layer_norm",
        "gelu": "gates:gelu",
        "silu_mul": "gates:silu_mul",
        "gelu_mul": "gates:gelu_mul",
        "last_row": "rows:last_row",
        "take_rows": "rows:take_rows",
        "expert_linear": "experts:expert_linear",
        "gemma_norm": "gemma:gemma_norm",
        "scaled": "gemma:scaled",
        "soft_cap": "gemma:soft_cap",
        "head_norm_rotary": "gemma:head_norm_rotary",
        "rotary": "rotary:rotary",
        "row_scale": "rounded_inputs:row_scale",
        "rounded": "rounded_inputs:rounded",
        "rounded_linear": "rounded_inputs:rounded_linear",
        "add": "collectives:add",
        "joined": "collectives:joined",
    },
    "gpu": {
        "embedding": "embedding:embedding",
        "linear": "linear:linear",
        "gated_linear": "gated_linear:gated_linear",
        "rms_norm": "norms:rms_norm",
        "qk_norm": "norms:qk_norm",
        "layer_norm": "norms:layer_norm",
        "gelu": "gates:gelu",
        "silu_mul": "gates:silu_mul",
        "gelu_mul": "gates:gelu_mul",
        "last_row": "rows:last_row",
        "take_rows": "rows:take_rows",
        "expert_linear": "experts:expert_linear",
        "expert_sum": "experts:expert_sum",
        "routes": "experts:routes",
        "gemma_norm": "gemma:gemma_norm",
        "scaled": "gemma:scaled",
        "soft_cap": "gemma:soft_cap",
        "head_norm_rotary": "gemma:head_norm_rotary",
        "rotary": "rotary:rotary",
        "row_scale": "rounded_inputs:row_scale",
        "rounded": "rounded_inputs:rounded",
        "rounded_linear": "rounded_inputs:rounded_linear",
        "add": "collectives:add",
        "joined": "collectives:joined",
        "qk_means": "collectives:qk_means",
        "qk_scaled": "collectives:qk_scaled",
    },
}


class Schedules(Mapping[str, Callable[..., Any]]):
    """Operator -> the function that makes its kernel, loaded when it is asked for. It takes the operator's label and
    the traits of the machine; None instead of a kernel: the operator keeps its plain loops."""

    def __init__(self, machine: str) -> None:
        self._machine, self._table = machine, KERNELS[machine]

    def __getitem__(self, operator: str) -> Callable[..., Any]:
        module, _, function = self._table[operator].partition(":")
        loaded: Callable[..., Any] = getattr(import_module(f"{_SCHEDULES}.{self._machine}.{module}"), function)
        return loaded

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)


@dataclass(frozen=True)
class Kernels:
    """The kernels of "cpu" or "gpu"; the modules of both export the same names."""

    machine: str

    @cached_property
    def schedules(self) -> Schedules:
        return Schedules(self.machine)

    @cached_property
    def attention(self) -> ModuleType:
        return self._load("attention")

    @cached_property
    def cache(self) -> ModuleType:
        return self._load("cache")

    @cached_property
    def sampling(self) -> ModuleType:
        return self._load("sampling")

    def _load(self, name: str) -> ModuleType:
        return import_module(f"{_SCHEDULES}.{self.machine}.{name}")


def backend(kind: str) -> Any:
    """The code generator of a kind of target: a llm_build.lowering.machine.Backend."""
    return import_module(BACKENDS[kind])


def linker(kind: str) -> Any:
    """The module whose ``link(objects, library, triple)`` makes a shared library for a kind of target."""
    return import_module(LINKERS[kind])


def optional_passes(kind: str, ranks: int) -> tuple[str, ...]:
    """Passes over the graph that only such a library needs, by the names of their modules."""
    cuda = kind == "cuda"
    several = ranks > 1
    return (
        *(("fuse_gate_up", "cuda_graphs") if cuda else ()),
        *(("fuse_allreduce_rmsnorm",) if cuda and several else ()),
        *(("cut_weights",) if several else ()),
    )


def load_passes(kind: str, ranks: int) -> dict[str, ModuleType]:
    """The modules of ``optional_passes``, by name."""
    return {name: import_module(f"{_PASSES}.{name}") for name in optional_passes(kind, ranks)}


def modules_of(kind: str, library: str, ranks: int, rounds_inputs: bool) -> tuple[str, ...]:
    """What a `lower` step loads by name beside its family: entries of Step.code.

    ``kind`` of the target; ``library``: how its file ends; ``rounds_inputs``: whether the scheme rounds the inputs of
    any layer. Kernels come with the operators that the graph and the passes import: schedules/<machine>/X.py with
    ops/X.py.
    """
    machine = "cpu" if kind == "cpu" else "gpu"
    on_demand = {"rounded_inputs": rounds_inputs, "collectives": ranks > 1}
    return (
        BACKENDS[kind],
        *(f"{_SCHEDULES}.{machine}.{name}" for name in _CACHE_KERNELS),
        f"{ops.__name__}.* > {_SCHEDULES}.{machine}.*",
        *(ops.ON_DEMAND[name] for name, used in on_demand.items() if used),
        *(f"{_PASSES}.{name}" for name in optional_passes(kind, ranks)),
        *((LINKERS[kind],) if library == "so" else ()),
    )
