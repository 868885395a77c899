"""ranks: say which rank holds what of each quantized shard, one item of cut per shard."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from builder import architectures
from builder.core.digest import canonical
from builder.core.errors import StepError
from builder.core.step import InputFiles, Json, Out
from builder.quant.cuts import SplitTensor, slicing_json, split_tensors
from builder.quant.layout import parse_scheme
from builder.steps.ports import one


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """``params``: {"family", "architecture", "scheme", "shards": ranks}; ``inputs``: {"parameters": parameters.json of
    shard}; output: ranks.json, the items of cut."""
    table = json.loads(one(inputs["parameters"]).path.read_bytes())["parameters"]
    family = architectures.load(params["family"])
    config = family.from_architecture(params["architecture"])
    scheme = parse_scheme(params["scheme"])
    splits = split_tensors(family.parameters(config), family.cuts(config), scheme, params["shards"])
    if sorted(splits) != sorted(place["name"] for place in table):
        raise StepError("the stored tensors are not those of this model")
    by_shard: dict[int, list[dict[str, Any]]] = {}
    for place in table:
        by_shard.setdefault(place["shard"], []).append(_tensor(place, splits[place["name"]]))
    items = [_item(index, tensors) for index, tensors in sorted(by_shard.items())]
    out.path("ranks.json").write_bytes(canonical({"items": items}))
    out.fact("bytes_per_rank", sum(split.local.nbytes for split in splits.values()))


def _tensor(place: Mapping[str, Any], split: SplitTensor) -> dict[str, Any]:
    return {
        "name": place["name"], "shape": place["shape"], "dtype": place["dtype"], "offset": place["offset"],
        "nbytes": place["nbytes"], "cut": slicing_json(split), "local": list(split.local.shape),
    }  # fmt: skip


def _item(index: int, tensors: list[dict[str, Any]]) -> dict[str, Any]:
    name = str(index)
    return {
        "name": name,
        "params": {"index": index, "tensors": tensors},
        "inputs": {
            "shard": ["quantized", f"params_shard_{index}.bin", name],
            "records": ["quantized", "records.json", name],
        },
    }
