"""convert: the weight map of a model over a checkpoint, and its folds. Moves no weights and reads none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

from builder import architectures
from builder.architectures.weights import map_json, parameter_count
from builder.core.digest import canonical
from builder.core.step_io import InputFiles, Json, Out
from builder.formats import quantized
from builder.steps.ports import one


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """``params``: {"family", "architecture", and "packing" of a checkpoint that is quantized}; ``inputs``: {"layout":
    layout.json}; output: weight_map.json."""
    family = architectures.load(params["family"])
    config = family.from_architecture(params["architecture"])
    read = partial(family.weight_map, config)
    tensors = json.loads(one(inputs["layout"]).path.read_bytes())
    if "packing" in params:
        weight_map = quantized.packed_weight_map(read, quantized.Packing(**params["packing"]), tensors)
    else:
        weight_map = read(tensors)
    out.path("weight_map.json").write_bytes(canonical(map_json(weight_map)))
    out.fact("parameters", parameter_count(weight_map.entries))
    out.fact("tensors_dropped", len(weight_map.dropped))
