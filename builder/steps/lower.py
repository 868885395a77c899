"""lower: a model's graph for one scheme, compiled for one target. Reads no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping

from builder import architectures, models
from builder.core.errors import StepError
from builder.core.step import InputFiles, Json, Out
from builder.quant import layout
from builder.targets.tvm_import import import_tvm


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """params {"family", "architecture", "scheme", "target", "metadata"} -> library.so, metadata.json."""
    out.progress(0, 0, "passes", "loading the compiler")
    import_tvm()
    from builder.lowering import (
        pipeline,
    )  # needs tvm; imported by name, so that its code is part of the step's identity
    from builder.quant.relax import apply_rules

    out.progress(0, 0, "passes", "building the graph")
    config = architectures.load(params["family"]).from_architecture(params["architecture"])
    scheme = layout.scheme(params["scheme"])
    model = models.load(params["family"]).Model(config, scheme, params["metadata"])
    if scheme.rules:
        apply_rules(model, architectures.load(params["family"]).parameters(config), scheme)
    module, _ = model.export_tvm(spec=model.functions())
    target = pipeline.cpu_target(params["target"])
    passes = pipeline.graph_passes(target, model, params["family"], scheme.name)

    def progress(done: int, total: int, label: str) -> None:
        out.progress(done, total, "passes", label)

    library = out.path("library.so")
    lowered = pipeline.compile_library(module, passes, target, library, progress)
    description = json.loads(str(lowered["_metadata"].body.body.value))
    out.path("metadata.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
    out.fact("kernels", sum(1 for _, f in lowered.functions_items() if type(f).__name__ == "PrimFunc"))
    if not library.stat().st_size:
        raise StepError("the linker wrote an empty library", "build doctor")
