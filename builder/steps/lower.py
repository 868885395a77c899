"""lower: a model's graph for one scheme, compiled for one target. Reads no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping

from builder import architectures, models
from builder.core.errors import StepError
from builder.core.step import InputFiles, Json, Out
from builder.quant import layout
from builder.targets.apps import library_name, symbol_prefix
from builder.targets.planned_tools import check_planned_tools
from builder.targets.tvm_import import import_tvm


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """params {"family", "architecture", "scheme", "target", "metadata"} -> library.so, metadata.json.

    For a target whose library another step or an app links: library.tar, the objects.
    """
    check_planned_tools(params)
    out.progress(0, 0, "passes", "loading the compiler")
    import_tvm()
    from builder.lowering import pipeline
    from builder.lowering.kernel_modules import load_passes
    from builder.lowering.machine import machine_of
    from builder.ops.weights import apply_rules

    out.progress(0, 0, "passes", "building the graph")
    config = architectures.load(params["family"]).from_architecture(params["architecture"])
    scheme = layout.parse_scheme(params["scheme"])
    model = models.load(params["family"]).Model(config, scheme, params["metadata"])
    if scheme.rules:
        apply_rules(model, architectures.load(params["family"]).parameters(config), scheme)
    module, _ = model.export_tvm(spec=model.functions())
    machine = machine_of(params["target"], symbol_prefix(library_name(params)))
    shares = {}  # what each of several ranks has of each stored tensor
    if cut_weights := load_passes(machine.kind, model.ranks).get("cut_weights"):
        family = architectures.load(params["family"])
        shares = cut_weights.split_tensors(family.parameters(config), family.cuts(config), scheme, model.ranks)
    passes = pipeline.graph_passes(machine, model, params["family"], scheme.name, shares)

    def progress(done: int, total: int, label: str) -> None:
        out.progress(done, total, "passes", label)

    library = out.path("library.so" if machine.library == "so" else "library.tar")
    lowered = pipeline.compile_library(module, passes, machine, library, progress)
    description = json.loads(str(lowered["_metadata"].body.body.value))
    out.path("metadata.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    out.fact("kernels", sum(1 for _, f in lowered.functions_items() if type(f).__name__ == "PrimFunc"))
    if not library.stat().st_size:
        raise StepError("the linker wrote an empty library", "build doctor")
    if machine.kind == "cpu" and library.suffix == ".tar":
        out.warn(
            f"nothing on this machine links a library for {params['target']['triple']}: the artifact's .tar holds its "
            "objects, to be linked as a shared library where it is to run (Linux: tar xf NAME.tar && cc -shared -o "
            "NAME.so *.o)"
        )
