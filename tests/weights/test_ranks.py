"""Weights for several ranks are those of the one-GPU build, differently cut: the same values, in files of each rank."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import llm_build
from llm_build import architectures
from llm_build.core.errors import StepError, UserError
from llm_build.formats.slicing import tp_shard_ranges
from llm_build.quant.cuts import SplitTensor, preprocs, slicing_json, split_tensors
from llm_build.quant.layout import Scheme
from llm_build.runtime import speed, weights
from llm_build.steps import cut, ranks
from tests.weights.weights_line import Built, FolderOut, group_scheme, run_package, run_weights

DEMO = Path(llm_build.__file__).parent / "demo"
LLAMA = architectures.load("llama")
CONFIG = LLAMA.from_hf(json.loads((DEMO / "config.json").read_text()))
SCHEME = group_scheme("q4f16_1")
RANKS = 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The demo model in five shards; its embedding alone in the first."""
    work = tmp_path_factory.mktemp("one")
    return run_weights(DEMO, work, asdict(CONFIG), asdict(SCHEME), max_shard_bytes=450_000)


@pytest.fixture(scope="module")
def divided(built: Built, tmp_path_factory: pytest.TempPathFactory) -> FolderOut:
    """The folder of an artifact of two ranks."""
    work = tmp_path_factory.mktemp("two")
    items = [deal_out(built, item, work) for item in ranked(built, SCHEME, work).json("ranks.json")["items"]]
    return run_package(Built(built.fetch, built.convert, built.shard, items), work, asdict(CONFIG), asdict(SCHEME))


def ranked(built: Built, scheme: Scheme, work: Path) -> FolderOut:
    out = FolderOut(work / "ranks")
    params = {"family": "llama", "architecture": asdict(CONFIG), "scheme": asdict(scheme), "shards": RANKS}
    ranks.run(params, {"parameters": built.shard.outputs()["parameters.json"]}, out)
    return out


def deal_out(built: Built, item: Mapping[str, Any], work: Path) -> FolderOut:
    out = FolderOut(work / f"cut-{item['name']}")
    made = {
        f"{index}/{name}": file for index, each in enumerate(built.quantize) for name, file in each.outputs().items()
    }
    ports = {port: made[f"{of}/{output}"] for port, (_, output, of) in item["inputs"].items()}
    cut.run({"shards": RANKS, **item["params"]}, ports, out)
    return out


def cuts() -> dict[str, SplitTensor]:
    return split_tensors(LLAMA.parameters(CONFIG), LLAMA.cuts(CONFIG), SCHEME, RANKS)


def wanted() -> list[dict[str, Any]]:
    """The parameters that a library of each rank asks for."""
    return [
        {"name": name, "shape": list(share.local.shape), "dtype": share.local.dtype, "cut": slicing_json(share)}
        | {"preprocs": preprocs(share, RANKS)}
        for name, share in cuts().items()
    ]


def joined(share: SplitTensor, parts: list[np.ndarray]) -> np.ndarray:
    """The whole tensor again, out of what the ranks have."""
    if share.slicing is None:
        assert all((part == parts[0]).all() for part in parts)
        return parts[0]
    whole = np.zeros(share.full.shape, parts[0].dtype)
    for rank, part in enumerate(parts):
        at = 0
        for start, stop in tp_shard_ranges(share.slicing, rank, RANKS):
            index = np.s_[start:stop] if share.slicing.axis == 0 else np.s_[:, start:stop]
            own = np.s_[at : at + stop - start] if share.slicing.axis == 0 else np.s_[:, at : at + stop - start]
            whole[index], at = part[own], at + stop - start
    return whole


def test_ranks_load_the_values_of_one_gpu(built: Built, divided: FolderOut):
    own = [weights.load_weights(files_of(divided), wanted(), rank, RANKS) for rank in range(RANKS)]
    stored = built.arrays()
    for index, (name, share) in enumerate(cuts().items()):
        parts = [loaded[index].numpy() for loaded in own]
        assert parts[0].shape == share.local.shape
        np.testing.assert_array_equal(joined(share, parts), stored[name], name)


def files_of(out: FolderOut) -> dict[str, Path]:
    return {name: file.path for name, file in out.outputs().items()}


def test_a_rank_reads_its_own_files_and_the_whole_ones(divided: FolderOut):
    for rank in range(RANKS):
        theirs = {n: p for n, p in files_of(divided).items() if f"_rank_{1 - rank}" not in n}
        assert len(weights.load_weights(theirs, wanted(), rank, RANKS)) == len(wanted())
        with pytest.raises(UserError, match=r"has no params_shard_\d_rank_"):
            weights.load_weights(theirs, wanted(), 1 - rank, RANKS)


def test_whole_files_are_cut_while_they_are_loaded(built: Built, divided: FolderOut, tmp_path: Path):
    whole = run_package(built, tmp_path, asdict(CONFIG), asdict(SCHEME))
    for rank in range(RANKS):
        pairs = [weights.load_weights(files_of(each), wanted(), rank, RANKS) for each in (divided, whole)]
        assert all((one.numpy() == other.numpy()).all() for one, other in zip(*pairs, strict=True))
    read = [speed.weights_read(files_of(each), {"params": wanted()}) for each in (divided, whole)]
    assert read[0] == read[1] < sum(share.local.nbytes for share in cuts().values())


def test_the_tensor_cache_names_parts_as_mlc_does(built: Built, divided: FolderOut):
    cache = divided.json("tensor-cache.json")
    files = [shard["dataPath"] for shard in cache["records"]]
    assert files[:5] == [
        "params_shard_0.bin", "params_shard_1.bin", "params_shard_1_rank_0.bin", "params_shard_1_rank_1.bin",
        "params_shard_2.bin",
    ]  # fmt: skip
    records = {record["name"]: record for shard in cache["records"] for record in shard["records"]}
    name = "model.layers.0.self_attn.qkv_proj.q_weight"
    assert name not in records
    assert [records[f"{name}_shard-{rank}"]["shape"] for rank in range(RANKS)] == [[192, 32]] * 2
    assert "model.embed_tokens.q_weight" in records
    assert all(record["byteOffset"] % 64 == 0 for record in records.values())
    assert cache["metadata"]["ParamBytes"] == sum(array.nbytes for array in built.arrays().values())


def test_a_shard_without_cut_tensors_is_linked(built: Built, divided: FolderOut):
    assert files_of(divided)["params_shard_0.bin"] == built.quantize[0].folder / "params_shard_0.bin"


def test_weights_of_fewer_ranks_are_refused(divided: FolderOut):
    with pytest.raises(UserError, match="cut for fewer than 3 ranks"):
        weights.load_weights(files_of(divided), wanted(), 2, 3)


def test_weights_of_another_model_are_refused(built: Built, tmp_path: Path):
    with pytest.raises(StepError, match="not those of this model"):
        ranked(built, group_scheme("q4f16_2", quantize_embedding=False, quantize_head=False), tmp_path)
