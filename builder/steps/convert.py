"""convert: the weight map of a model over a checkpoint, and its folds. Moves no weights and reads none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial

from llm_build import architectures
from llm_build.architectures.weights import WeightMap, map_json, parameter_count
from llm_build.core.digest import canonical
from llm_build.core.errors import UserError
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.core.units import count_of
from llm_build.formats import quantized
from llm_build.steps.ports import one


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """``params``: {"family", "architecture", and "packing" of a checkpoint that is quantized}; ``inputs``: {"layout":
    layout.json}; output: weight_map.json.

    Raises:
        UserError: the checkpoint does not fit the model (see Family.weight_map), or a tied head is no copy.
    """
    family = architectures.load(params["family"])
    config = family.from_architecture(params["architecture"])
    read = partial(family.weight_map, config)
    layout = json.loads(one(inputs["layout"]).path.read_bytes())
    if "packing" in params:
        weight_map = quantized.packed_weight_map(read, quantized.Packing(**params["packing"]), layout)
    else:
        weight_map = read(layout)
    _check_copies(family.copies(config), weight_map, layout)
    if biases := [name for name in weight_map.dropped if name.endswith(".bias")] if "packing" in params else []:
        out.warn(
            f"the model has no use for {count_of(len(biases), 'bias')} of quantized modules ({biases[0]}, ...): left "
            "out, if 0"
        )
    out.path("weight_map.json").write_bytes(canonical(map_json(weight_map)))
    out.fact("parameters", parameter_count(weight_map.entries))
    out.fact("tensors_dropped", len(weight_map.dropped))


def _check_copies(copies: Mapping[str, str], weight_map: WeightMap, layout: Mapping[str, Json]) -> None:
    """A tied head may be left out if it holds what the embedding holds; transformers takes another head as it is.

    Raises:
        UserError: the head differs from the embedding.
    """
    for head, embedding in copies.items():
        if head not in weight_map.dropped or any({head, embedding} <= set(group) for group in layout["copies"]):
            continue
        stem = head.removesuffix("weight")
        shown = head if head in layout["tensors"] else next(n for n in layout["tensors"] if n.startswith(stem))
        raise UserError(
            f"config.json says tie_word_embeddings: true, and the checkpoint has {shown!r} beside {embedding!r}, with "
            "other values; transformers then takes both as they are",
            "model.tie_word_embeddings=false builds that model; if the head is a mistake, take the tensor out",
        )
