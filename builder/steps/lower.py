"""lower: a model's graph for one scheme, compiled for one target. Reads no weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_build import architectures
from llm_build.core.errors import StepError
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.quant import layout
from llm_build.targets.mlc_apps import library_name, symbol_prefix
from llm_build.targets.planned_tools import check_planned_tools
from llm_build.targets.tvm_import import import_tvm

if TYPE_CHECKING:
    from llm_build.lowering.choices import OperatorKernel
    from llm_build.lowering.progress import Observer, Progress
    from llm_build.quant.cuts import SplitTensor


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """params {"family", "architecture", "scheme", "target", "metadata"} -> library.so, metadata.json, operators.json.

    For a target whose library another step or an app links: library.tar, the objects. operators.json says which kernel
    each operator got and why; nothing reads it but people.
    """
    check_planned_tools(params)
    out.progress(0, 0, "passes", "loading the compiler")
    import_tvm()
    from llm_build.lowering.choices import as_json

    def progress(done: int, total: int, label: str) -> None:
        out.progress(done, total, "passes", label)

    lowered, kernels, library = compile_model(params, out.path, progress)
    description = json.loads(str(lowered["_metadata"].body.body.value))
    out.path("metadata.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    out.path("operators.json").write_text(json.dumps(as_json(kernels), indent=1, sort_keys=True) + "\n")
    out.fact("kernels", sum(1 for _, f in lowered.functions_items() if type(f).__name__ == "PrimFunc"))
    if not library.stat().st_size:
        raise StepError("the linker wrote an empty library", "build doctor")
    if params["target"]["kind"] == "cpu" and library.suffix == ".tar":
        out.warn(
            f"nothing on this machine links a library for {params['target']['triple']}: the artifact's .tar holds its "
            "objects, to be linked as a shared library where it is to run (Linux: tar xf NAME.tar && cc -shared -o "
            "NAME.so *.o)"
        )


def compile_model(
    params: Mapping[str, Json], place: Callable[[str], Path], progress: Progress, observer: Observer | None = None
) -> tuple[Any, list[OperatorKernel], Path]:
    """The graph as the passes left it, the kernel of each operator, and the library. TVM is imported already.

    ``place``: where a file of this name goes; ``observer`` sees what the stages make, and changes nothing.
    """
    from llm_build.lowering import pipeline
    from llm_build.lowering.machine import machine_of

    progress(0, 0, "building the graph")
    config = architectures.load(params["family"]).from_architecture(params["architecture"])
    scheme = layout.parse_scheme(params["scheme"])
    model, module = _export(params, config, scheme)
    machine = machine_of(params["target"], symbol_prefix(library_name(params)))
    kernels: list[OperatorKernel] = []
    shares = _split_tensors(params["family"], config, scheme, machine.kind, model.ranks)
    passes = pipeline.graph_passes(machine, model, params["family"], scheme.name, shares, kernels)
    library = place("library.so" if machine.library == "so" else "library.tar")
    return pipeline.compile_library(module, passes, machine, library, progress, observer), kernels, library


def _export(params: Mapping[str, Json], config: Any, scheme: layout.Scheme) -> tuple[Any, Any]:
    """The model and its graph."""
    from llm_build.models.decoder import Model
    from llm_build.ops.weights import apply_rules

    family = architectures.load(params["family"])
    model = Model(family.describe(config), scheme, params["metadata"])
    if scheme.rules:
        apply_rules(model, family.parameters(config), scheme)
    module, _ = model.export_tvm(spec=model.functions())
    return model, module


def _split_tensors(family: str, config: Any, scheme: layout.Scheme, kind: str, ranks: int) -> dict[str, SplitTensor]:
    """What each of several ranks has of each stored tensor; of one rank nothing."""
    from llm_build.lowering.kernel_modules import load_passes

    cut_weights = load_passes(kind, ranks).get("cut_weights")
    if cut_weights is None:
        return {}
    described = architectures.load(family)
    split: dict[str, SplitTensor] = cut_weights.split_tensors(
        described.parameters(config), described.cuts(config), scheme, ranks
    )
    return split
