"""From a graph to a library: passes over the graph, passes over its kernels, machine code, and a linked file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import ir, relax, s_tir, tirx
from tvm.relax import vm_build

from builder.lowering.passes import kernels, kv_cache, metadata, sampling
from builder.lowering.schedules.cpu.vector import Isa
from builder.targets import cpu
from builder.targets.link import link

Progress = Callable[[int, int, str], None]  # stages done, stages in all, the one that starts now
Pass = tuple[str, Any]


@dataclass(frozen=True, slots=True)
class CpuTarget:
    """A machine to build for: TVM's target (the same CPU for its host part) and what kernels are written for."""

    tvm: Any
    isa: Isa
    description: Mapping[str, Any]


def cpu_target(target: Mapping[str, Any]) -> CpuTarget:
    """From the recipe's target; ``cpu`` is a level, never "host"."""
    features = cpu.implied(target["cpu"], target["features"])
    description = {
        "kind": "llvm",
        "mtriple": target["triple"],
        "mcpu": target["cpu"],
        "mattr": [f"+{name}" for name in target["features"]],
    }
    lanes = 16 if "avx512f" in features else 8 if "avx2" in features else 4
    return CpuTarget(tvm.target.Target(description, host=description), Isa(lanes, "f16c" in features), target)


def graph_passes(target: CpuTarget, model: Any, family: str, scheme: str) -> list[Pass]:
    """Everything that happens to the graph, in order."""
    memory = metadata.Memory()
    return [
        ("plain operators", relax.transform.LegalizeOps()),
        ("reshapes", relax.transform.RewriteDataflowReshape()),
        ("unused functions", relax.transform.DeadCodeElimination()),
        ("KV cache kernels", kv_cache.with_cpu_kernels(target.isa)),
        ("CPU kernels", kernels.with_cpu_schedules(target.isa)),
        ("sampling functions", sampling.attach(model.vocab, model.hidden, model.metadata, target.isa)),
        ("size limits", metadata.bound_sizes(model.metadata)),
        ("dataflow", relax.transform.ToNonDataflow()),
        ("purity", relax.transform.RemovePurityChecking()),
        ("calls", relax.transform.CallTIRRewrite()),
        ("memory plan", relax.transform.StaticPlanBlockMemory()),
        ("memory sizes", memory.measure()),
        ("metadata", metadata.attach(model, family, scheme, target.description, memory)),
        ("allocation", relax.transform.LowerAllocTensor()),
        ("lifetimes", relax.transform.KillAfterLastUse()),
        ("builtins", relax.transform.LowerRuntimeBuiltin()),
        ("computed values", relax.transform.ComputePrimValue()),
        ("shapes", relax.transform.VMShapeLower()),
        ("symbols", relax.transform.AttachGlobalSymbol()),
    ]


def code_passes(target: CpuTarget) -> list[Pass]:
    """From kernels to what LLVM takes, in order. The passes over blocks are for plain loops; kernels have no blocks."""
    return [
        ("target", tirx.transform.BindTarget(target.tvm)),
        ("reduction starts", s_tir.transform.LowerInitBlock()),
        ("buffer places", s_tir.transform.PlanAndUpdateBufferAllocationLocation()),
        ("block variables", s_tir.transform.ConvertBlocksToOpaque()),
        ("matched buffers", s_tir.transform.LowerMatchBuffer()),
        ("blocks", s_tir.transform.LowerOpaqueBlock()),
        ("flat buffers", tirx.transform.FlattenBuffer()),
        ("bfloat16 values", tirx.transform.BF16ComputeLegalize()),
        ("index types", tirx.transform.NarrowDataType(32)),
        ("vectors", tirx.transform.VectorizeLoop(True)),
        ("simplification", tirx.transform.StmtSimplify()),
        ("empty code", tirx.transform.RemoveNoOp()),
        ("memory check", tirx.transform.VerifyMemory()),
        ("entry", tirx.transform.AnnotateEntryFunc()),
        ("host and device", tirx.transform.SplitHostDevice()),
        ("calling convention", tirx.transform.MakePackedAPI()),
        ("bfloat16 as integers", tirx.transform.BF16StorageLegalize()),
        ("runtime calls", tirx.transform.LowerTVMBuiltin()),
        ("intrinsics", tirx.transform.LowerIntrin()),
    ]


def compile_library(module: Any, graph: list[Pass], target: CpuTarget, library: Path, progress: Progress) -> Any:
    """Run the passes over the exported graph and write ``library``; returns the graph as the passes left it."""
    code = code_passes(target)
    stages = Stages(progress, len(graph) + len(code) + 1)
    with target.tvm, tvm.transform.PassContext(opt_level=3):
        for name, transform in graph:
            stages.start(name)
            module = transform(module)
        builder = relax.ExecBuilder()
        functions = vm_build._filter_tir(vm_build._vmcodegen(builder, module))
        stages.total += len(functions.functions)
        for name, transform in code:
            stages.start(name)
            functions = transform(functions)
        machine_code = generate(functions, target, stages)
        constants = dict(module.attrs.get("const_name_to_constant", {})) if module.attrs else {}
        linked = vm_build._ffi_api.VMLink(builder, target.tvm, machine_code, [], constants)
    stages.start("link")
    vm_build.VMExecutable(linked).export_library(str(library), fcompile=_link)
    stages.finish()
    return module


class Stages:
    """Counts what was started."""

    def __init__(self, report: Progress, total: int) -> None:
        self.report, self.total, self.started = report, total, 0

    def start(self, name: str) -> None:
        self.report(self.started, self.total, name)
        self.started += 1

    def finish(self) -> None:
        self.report(self.total, self.total, "done")


def generate(functions: Any, target: CpuTarget, stages: Stages) -> Any:
    """Machine code of each function, as one module that imports the others: so progress shows, kernel by kernel."""
    build = tvm.get_global_func("target.build.llvm")
    modules = []
    for variable, function in functions.functions_items():
        stages.start(variable.name_hint)
        modules.append(build(ir.IRModule({variable: function}, attrs=functions.attrs), target.tvm))
    for module in modules[1:]:
        modules[0].import_module(module)
    return modules[0]


def _link(library: str, objects: list[str], options: Any = None, **_unused: Any) -> None:
    """The objects' own folder leaves no trace in the library."""
    link([Path(name) for name in objects], Path(library))
