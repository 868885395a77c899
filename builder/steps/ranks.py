"""ranks: say which rank holds what of each quantized shard, one item of cut per shard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llm_build import architectures
from llm_build.core.digest import canonical
from llm_build.core.errors import StepError
from llm_build.core.step_io import InputFiles, Json, Out
from llm_build.formats.parameter_table import CutTensor, TensorLocation, cut_tensor_to_json, read_parameter_table
from llm_build.quant.cuts import SplitTensor, split_tensors
from llm_build.quant.layout import parse_scheme
from llm_build.steps.ports import one


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """``params``: {"family", "architecture", "scheme", "shards": ranks}; ``inputs``: {"parameters": parameters.json of
    shard}; output: ranks.json, the items of cut."""
    locations = read_parameter_table(one(inputs["parameters"]).path.read_bytes())
    family = architectures.load(params["family"])
    config = family.from_architecture(params["architecture"])
    scheme = parse_scheme(params["scheme"])
    splits = split_tensors(family.parameters(config), family.cuts(config), scheme, params["shards"])
    if sorted(splits) != sorted(location.name for location in locations):
        raise StepError("the stored tensors are not those of this model")
    by_shard: dict[int, list[CutTensor]] = {}
    for location in locations:
        by_shard.setdefault(location.shard, []).append(_cut_tensor(location, splits[location.name]))
    items = [_item(index, tensors) for index, tensors in sorted(by_shard.items())]
    out.path("ranks.json").write_bytes(canonical({"items": items}))
    out.fact("bytes_per_rank", sum(split.local.nbytes for split in splits.values()))


def _cut_tensor(location: TensorLocation, split: SplitTensor) -> CutTensor:
    return CutTensor(
        location.name, location.shape, location.dtype, location.offset, location.nbytes, split.slicing,
        split.local.shape,
    )  # fmt: skip


def _item(index: int, tensors: list[CutTensor]) -> dict[str, Any]:
    name = str(index)
    return {
        "name": name,
        "params": {"index": index, "tensors": [cut_tensor_to_json(tensor) for tensor in tensors]},
        "inputs": {
            "shard": ["quantized", f"params_shard_{index}.bin", name],
            "records": ["quantized", "records.json", name],
        },
    }
