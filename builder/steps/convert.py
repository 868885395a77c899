"""convert: the weight map of a model over a checkpoint. Moves no weights and reads none."""

from __future__ import annotations

import json
from collections.abc import Mapping

from builder import architectures
from builder.architectures.weights import parameter_count
from builder.core.digest import canonical
from builder.core.step import File, InputFiles, Json, Out


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """``params``: {"family", "architecture"}; ``inputs``: {"layout": layout.json}; output: weight_map.json."""
    layout = inputs["layout"]
    assert isinstance(layout, File)
    family = architectures.load(params["family"])
    config = family.from_architecture(params["architecture"])
    weight_map = family.weight_map(config, json.loads(layout.path.read_bytes()))
    out.path("weight_map.json").write_bytes(canonical(weight_map))
    out.fact("parameters", parameter_count(weight_map))
    out.fact("tensors_dropped", len(weight_map["dropped"]))
