"""From kernels to machine code of a CPU."""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tvm
import tvm_ffi
from tvm import ir, tirx

from llm_build.lowering import tir_passes
from llm_build.lowering.kernel_modules import Kernels
from llm_build.lowering.machine import Machine, Pass, host_target
from llm_build.lowering.progress import StageProgress
from llm_build.lowering.schedules.cpu import vector as v
from llm_build.lowering.schedules.cpu.vector import Isa
from llm_build.targets import cpu

_KERNELS = Kernels("cpu")
_MOST_COMPILED = 1000  # objects of about 30 libraries, 25 MB
_compiled: OrderedDict[tuple[str, str, Any], Any] = OrderedDict()  # the last ones, by target and function


def machine_of(target: Mapping[str, Any], prefix: str = "") -> Machine:
    """``target["cpu"]`` is a level, never "host"."""
    features = cpu.implied_features(target["cpu"], target["features"])
    description = host_target(target)
    arm = target["cpu"] == cpu.ARM  # which converts float16 in hardware, four at a time
    lanes = 16 if "avx512f" in features else 8 if "avx2" in features else 4
    vnni = "avx512vnni" in features or ("avxvnni" in features and lanes == 8)
    isa = Isa(lanes, arm or "f16c" in features, vnni)
    return Machine(tvm.target.Target(description, host=description), _KERNELS, isa, target)


def passes(machine: Machine) -> list[Pass]:
    """None: ``generate`` has its own, for the kernels that it compiles."""
    return []


def kernel_passes(machine: Machine) -> list[Pass]:
    """From kernels to what LLVM takes, in order. The passes over blocks are for plain loops; kernels have no blocks.
    Empty code is left to LLVM: it makes the same machine code without that pass, which takes as long as LLVM does."""
    return [
        ("target", tirx.transform.BindTarget(machine.tvm)),
        *tir_passes.LOOPS,
        ("index types", tirx.transform.NarrowDataType(32)),
        *tir_passes.PLAIN,
        *tir_passes.FUNCTIONS,
        ("runtime calls", tirx.transform.LowerTVMBuiltin()),
        ("intrinsics", tirx.transform.LowerIntrin()),
    ]


def compile_kernel(variable: Any, function: Any, machine: Machine) -> Any:
    """A module of LLVM."""
    module = ir.IRModule({variable: function})
    for _, transform in kernel_passes(machine):
        module = transform(module)
    return _llvm(module, machine)


def generate(functions: Any, machine: Machine, progress: StageProgress) -> Any:
    """Machine code of each function, in modules that an empty one imports: so progress shows, kernel by kernel, and a
    kernel that an earlier library of this process has is not compiled again."""
    progress.expect(len(functions.functions))
    whole = _llvm(ir.IRModule({}, attrs=functions.attrs), machine)
    for variable, function in functions.functions_items():
        progress.start(variable.name_hint)
        names = function.script(show_meta=False)  # machine code has the names of arguments, which structure leaves out
        key = (str(machine.tvm), names, tvm_ffi.StructuralKey(function))
        if progress.observer or key not in _compiled:
            module = compile_kernel(variable, function, machine)
            if progress.observer:
                progress.observer.machine_code(variable.name_hint, module)
            _compiled[key] = _object(module, str(function.attrs["global_symbol"]))
        _compiled.move_to_end(key)
        whole.import_module(_compiled[key])
    while len(_compiled) > _MOST_COMPILED:
        _compiled.popitem(last=False)
    return whole


def _object(module: Any, symbol: str) -> Any:
    """The module's object file, as a module."""
    with tempfile.TemporaryDirectory() as folder:
        module.write_to_file(f"{folder}/kernel.o", "o")
        return tvm.runtime.load_static_library(f"{folder}/kernel.o", [symbol])


def _llvm(module: Any, machine: Machine) -> Any:
    return tvm.get_global_func("target.build.llvm")(module, machine.tvm)


def metadata(model: Any, target: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing beside what every library has."""
    return {}


def elementwise(args: Sequence[Any], count: int, store: Callable[..., Callable[[Any], None]], traits: Isa) -> Any:
    """One value after the other."""

    def body(*buffers: Any) -> None:
        with v.loop(tirx.const(count, "int32")) as index:
            store(*buffers)(index)

    return v.kernel(args, body)
