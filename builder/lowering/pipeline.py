"""From a graph to a library: passes over the graph, passes over its kernels, machine code, and a linked file."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import tvm
from tvm import relax
from tvm.relax import vm_build

from builder.lowering.backends import cpu as cpu_code
from builder.lowering.backends import gpu as gpu_code
from builder.lowering.machine import Machine
from builder.lowering.passes import (
    cuda_graphs,
    cut_weights,
    kernels,
    kv_cache,
    metadata,
    sampling,
    shape_functions,
    symbols,
)
from builder.lowering.passes import fuse_allreduce_rmsnorm as sums_with_norms
from builder.lowering.passes import fuse_gate_up as gated_products
from builder.lowering.passes import lazy_param_load as late_weights
from builder.lowering.progress import Progress, Stages
from builder.quant.cuts import SplitTensor
from builder.targets import android
from builder.targets.link import link

Pass = tuple[str, Any]
ALONE: Mapping[str, SplitTensor] = {}


def graph_passes(
    machine: Machine, model: Any, family: str, scheme: str, shares: Mapping[str, SplitTensor] = ALONE
) -> list[Pass]:
    """Everything that happens to the graph, in order. ``shares``: what each of several ranks has of each tensor."""
    memory = metadata.Memory()
    on_cuda = machine.kind == "cuda"
    capture = on_cuda and cuda_graphs.pay(model, machine.description)
    graphs = [("CUDA graphs", cuda_graphs.captured())] if capture else []
    several = on_cuda and bool(shares)
    pairs = [("sums with norms", sums_with_norms.fused(machine))] if several else []
    peers = [("peers", sums_with_norms.attach_peers(machine))] if several else []
    gates = [("products with gates", gated_products.fused())] if on_cuda else []
    return [
        ("plain operators", relax.transform.LegalizeOps()),
        ("reshapes", relax.transform.RewriteDataflowReshape()),
        ("unused functions", relax.transform.DeadCodeElimination()),
        *gates,
        *pairs,
        ("KV cache kernels", kv_cache.with_kernels(machine)),
        ("kernels", kernels.with_schedules(machine.kernels.schedules, machine.made_for)),
        ("sampling functions", sampling.attach(model.vocab, model.hidden, model.metadata, machine)),
        *peers,
        *([("cuts of weights", cut_weights.attach(shares, model.ranks, machine))] if shares else []),
        ("size limits", metadata.bound_sizes(model.metadata)),
        ("dataflow", relax.transform.ToNonDataflow()),
        ("purity", relax.transform.RemovePurityChecking()),
        ("calls", relax.transform.CallTIRRewrite()),
        ("memory plan", relax.transform.StaticPlanBlockMemory()),
        ("memory sizes", memory.measure()),
        *graphs,
        ("metadata", metadata.attach(model, family, scheme, machine.description, memory, shares)),
        ("allocation", relax.transform.LowerAllocTensor()),
        ("weights where they are used", late_weights.taken_late()),
        ("lifetimes", relax.transform.KillAfterLastUse()),
        ("builtins", relax.transform.LowerRuntimeBuiltin()),
        ("computed values", relax.transform.ComputePrimValue()),
        ("shapes", relax.transform.VMShapeLower()),
        ("order of shapes", shape_functions.ordered()),
        ("symbols", symbols.attach(machine)),
    ]


def compile_library(module: Any, graph: list[Pass], machine: Machine, library: Path, progress: Progress) -> Any:
    """Run the passes over the exported graph and write ``library``: a shared library, or for a name that ends with
    .tar an archive of its objects, which register themselves where they are linked to a runtime. Returns the graph as
    the passes left it."""
    code = cpu_code if machine.kind == "cpu" else gpu_code
    if machine.kind != "cpu":
        kernels.check_covered(module, machine.kernels.schedules)
    passes = code.passes(machine)
    stages = Stages(progress, len(graph) + len(passes) + 1)
    with machine.tvm, tvm.transform.PassContext(opt_level=3):
        for name, transform in graph:
            stages.start(name)
            module = transform(module)
        builder = relax.ExecBuilder()
        functions = vm_build._filter_tir(vm_build._vmcodegen(builder, module))
        for name, transform in passes:
            stages.start(name)
            functions = transform(functions)
        machine_code = code.generate(functions, machine, stages)
        constants = dict(module.attrs.get("const_name_to_constant", {})) if module.attrs else {}
        linked = vm_build._ffi_api.VMLink(builder, machine.tvm, machine_code, [], constants)
    stages.start("link")
    write = _archive if library.suffix == ".tar" else partial(_link, triple=machine.description["triple"])
    vm_build.VMExecutable(linked).export_library(str(library), fcompile=write)
    stages.finish()
    return module


def _link(library: str, objects: list[str], options: Any = None, *, triple: str, **_unused: Any) -> None:
    """The objects' own folder leaves no trace in the library."""
    paths = [Path(name) for name in objects]
    if triple.endswith("android"):
        android.link(paths, Path(library))
    else:
        link(paths, Path(library), triple)


def _archive(library: str, objects: list[str], options: Any = None, **_unused: Any) -> None:
    """The objects by number, without times and owners."""
    with tarfile.open(library, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, name in enumerate(objects):
            entry = tarfile.TarInfo(f"{number}.o")
            entry.size = Path(name).stat().st_size
            with open(name, "rb") as content:
                archive.addfile(entry, content)
