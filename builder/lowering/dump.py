"""Write down what lowering makes of a model: the graph after each pass, each kernel's TIR and code, and the choices.

A folder of:

    graph/00_exported.txt, graph/01_plain_operators.txt, ...  the graph before the passes and after each of them
    kernels/<function>.tir.txt                                each function's TIR, as the schedules made it
    kernels/<function>.ll, .s, .o                             for a CPU: LLVM IR, assembly, machine code
    device.cu, .wgsl, .metal, .cl                             for a GPU: the source of all kernels
    device.fatbin, .metallib                                  what its compiler made of it, where one runs
    host.ll, host.s, host.o                                   the code around a GPU's kernels
    operators.json                                            the kernel of each operator, its tile and the reason
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tvm import ir, relax, tirx

from llm_build.lowering.choices import OperatorKernel, as_json

_ENDINGS = {
    "cuda": "cu",
    "webgpu": "wgsl",
    "metal": "metal",
    "opencl": "cl",
}  # kind of target -> of its kernels' source
_CODE_FORMATS = ("ll", "s")  # that TVM's module of LLVM can print: LLVM IR and assembly
_HOST = "host"


class Dump:
    """Writes to ``folder``, which is empty: an Observer of lowering."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        for name in ("graph", "kernels"):
            (folder / name).mkdir(parents=True)

    def graph(self, stage: str, module: Any) -> None:
        """Functions of the graph only: kernels have files of their own."""
        functions = {v: f for v, f in module.functions_items() if isinstance(f, relax.Function)}
        text = ir.IRModule(functions, attrs=module.attrs).script(show_meta=False)
        name = re.sub(r"\W+", "_", stage.lower())
        (self._folder / "graph" / f"{self._count:02d}_{name}.txt").write_text(text + "\n", "utf-8")
        self._count += 1

    def kernels(self, module: Any) -> None:
        """The TIR of each function, when the graph's passes are done."""
        for variable, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc):
                text = function.script(show_meta=False)
                self._kernel(variable.name_hint, "tir.txt").write_text(text + "\n", "utf-8")

    def machine_code(self, function: str, module: Any) -> None:
        for code_format in _CODE_FORMATS:
            self._code(function, code_format).write_text(module.inspect_source(code_format), "utf-8")
        module.write_to_file(str(self._code(function, "o")), "o")

    def device_code(self, source: str, kind: str) -> None:
        (self._folder / f"device.{_ENDINGS[kind]}").write_text(source, "utf-8")

    def device_binary(self, code: bytes, ending: str) -> None:
        (self._folder / f"device.{ending}").write_bytes(code)

    def operators(self, kernels: Sequence[OperatorKernel]) -> None:
        """The table of operators."""
        table = as_json(kernels)
        (self._folder / "operators.json").write_text(json.dumps(table, indent=1, sort_keys=True) + "\n", "utf-8")

    def _kernel(self, function: str, ending: str) -> Path:
        return self._folder / "kernels" / f"{function}.{ending}"

    def _code(self, function: str, ending: str) -> Path:
        return self._folder / f"{_HOST}.{ending}" if function == _HOST else self._kernel(function, ending)
