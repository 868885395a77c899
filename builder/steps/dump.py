"""What `build lower --dump` runs; not a step. The compilation of `lower`, which writes down what it makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from llm_build.core.step_io import Json
from llm_build.steps.lower import compile_model
from llm_build.targets.planned_tools import check_planned_tools
from llm_build.targets.tvm_import import import_tvm


def dump_lowering(params: Mapping[str, Json], folder: Path, progress: Callable[[int, int, str], None]) -> None:
    """Write what lowering makes to ``folder``, which is empty: builder/lowering/dump.py has the list. ``params``: of a
    lower step. The library and its metadata are those of the step."""
    check_planned_tools(params)
    import_tvm()
    from llm_build.lowering.dump import Dump

    dump = Dump(folder)
    lowered, kernels, _ = compile_model(params, lambda name: folder / name, progress, dump)
    dump.kernels(lowered)
    dump.operators(kernels)
    description = json.loads(str(lowered["_metadata"].body.body.value))
    (folder / "metadata.json").write_text(json.dumps(description, indent=1, sort_keys=True) + "\n", "utf-8")
