"""From a graph to a library: passes over the graph, passes over its kernels, machine code, and a linked file."""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tvm
from tvm import relax
from tvm.relax import vm_build

from llm_build.lowering.kernel_modules import backend, linker, load_passes
from llm_build.lowering.machine import Machine, Pass
from llm_build.lowering.passes import kernels, kv_cache, lazy_param_load, metadata, sampling, shape_functions, symbols
from llm_build.lowering.progress import Observer, Progress, StageProgress

if TYPE_CHECKING:
    from llm_build.lowering.choices import OperatorKernel
    from llm_build.quant.cuts import SplitTensor


def graph_passes(
    machine: Machine,
    model: Any,
    family: str,
    scheme: str,
    shares: Mapping[str, SplitTensor] | None = None,
    chosen: list[OperatorKernel] | None = None,
) -> list[Pass]:
    """Everything that happens to the graph, in order. ``shares``: what each of several ranks has of each tensor;
    ``chosen`` gets the kernel of each operator."""
    memory = metadata.Memory()
    before, after, graphs, cuts = _optional_passes(machine, model, shares or {})
    return [
        ("plain operators", relax.transform.LegalizeOps()),
        ("reshapes", relax.transform.RewriteDataflowReshape()),
        ("unused functions", relax.transform.DeadCodeElimination()),
        *before,
        ("KV cache kernels", kv_cache.with_kernels(machine, chosen)),
        ("kernels", kernels.with_schedules(machine.kernels.schedules, machine.traits, chosen)),
        ("sampling functions", sampling.attach(model.vocab, model.hidden, model.metadata, machine)),
        *after,
        ("size limits", metadata.bound_sizes(model.metadata)),
        ("dataflow", relax.transform.ToNonDataflow()),
        ("purity", relax.transform.RemovePurityChecking()),
        ("calls", relax.transform.CallTIRRewrite()),
        ("memory plan", relax.transform.StaticPlanBlockMemory()),
        ("memory sizes", memory.measure()),
        *graphs,
        ("metadata", metadata.attach(model, family, scheme, machine, memory, cuts)),
        ("allocation", relax.transform.LowerAllocTensor()),
        ("lazy parameter load", lazy_param_load.load_at_first_use()),
        ("lifetimes", relax.transform.KillAfterLastUse()),
        ("builtins", relax.transform.LowerRuntimeBuiltin()),
        ("computed values", relax.transform.ComputePrimValue()),
        ("shapes", relax.transform.VMShapeLower()),
        ("order of shapes", shape_functions.order_shape_functions()),
        ("symbols", symbols.attach(machine)),
    ]


def _optional_passes(
    machine: Machine, model: Any, shares: Mapping[str, SplitTensor]
) -> tuple[list[Pass], list[Pass], list[Pass], dict[str, dict[str, Any]]]:
    """What only some targets and numbers of ranks need: passes before the kernels are chosen, after them, and behind
    the memory plan; and what the metadata says of the cuts."""
    loaded = load_passes(machine.kind, model.ranks)
    before: list[Pass] = []
    after: list[Pass] = []
    graphs: list[Pass] = []
    cuts: dict[str, dict[str, Any]] = {}
    if gate_up := loaded.get("fuse_gate_up"):
        before.append(("fuse gate and up", gate_up.fuse_gate_up()))
    if allreduce := loaded.get("fuse_allreduce_rmsnorm"):
        before.append(("fuse allreduce and RMS norm", allreduce.fuse_allreduce_rmsnorm(machine)))
        after.append(("peers", allreduce.attach_peers(machine)))
    if cut_weights := loaded.get("cut_weights"):
        after.append(("cuts of weights", cut_weights.attach(shares, model.ranks, machine)))
        cuts = cut_weights.describe(shares, model.ranks)
    if (cuda_graphs := loaded.get("cuda_graphs")) and cuda_graphs.library_captures(model, machine.description):
        graphs.append(("CUDA graphs", cuda_graphs.capture_graphs()))
    return before, after, graphs, cuts


def compile_library(
    module: Any,
    graph: list[Pass],
    machine: Machine,
    library: Path,
    progress: Progress,
    observer: Observer | None = None,
) -> Any:
    """Run the passes over the exported graph and write ``library``: a shared library, or for a name that ends with
    .tar an archive of its objects, which register themselves where they are linked to a runtime. Returns the graph as
    the passes left it. ``observer`` sees what the stages make."""
    code = backend(machine.kind)
    if machine.kind != "cpu":
        kernels.check_covered(module, machine.kernels.schedules)
    passes = code.passes(machine)
    stages = StageProgress(progress, len(graph) + len(passes) + 1, observer)
    if observer:
        observer.graph("exported", module)
    with machine.tvm, tvm.transform.PassContext(opt_level=3):
        for name, transform in graph:
            stages.start(name)
            module = transform(module)
            if observer:
                observer.graph(name, module)
        builder = relax.ExecBuilder()
        functions = vm_build._filter_tir(vm_build._vmcodegen(builder, module))
        for name, transform in passes:
            stages.start(name)
            functions = transform(functions)
        machine_code = code.generate(functions, machine, stages)
        constants = dict(module.attrs.get("const_name_to_constant", {})) if module.attrs else {}
        linked = vm_build._ffi_api.VMLink(builder, machine.tvm, machine_code, [], constants)
    stages.start("link")
    write = _archive if library.suffix == ".tar" else partial(_link, machine=machine)
    vm_build.VMExecutable(linked).export_library(str(library), fcompile=write)
    stages.finish()
    return module


def _link(library: str, objects: list[str], options: Any = None, *, machine: Machine, **_unused: Any) -> None:
    """The objects' own folder leaves no trace in the library."""
    linker(machine.kind).link([Path(name) for name in objects], Path(library), machine.description["triple"])


def _archive(library: str, objects: list[str], options: Any = None, **_unused: Any) -> None:
    """The objects by number, without times and owners."""
    with tarfile.open(library, "w", format=tarfile.USTAR_FORMAT) as archive:
        for number, name in enumerate(objects):
            entry = tarfile.TarInfo(f"{number}.o")
            entry.size = Path(name).stat().st_size
            with open(name, "rb") as content:
                archive.addfile(entry, content)
