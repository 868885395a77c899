"""Tiny models of every family for several ranks: what is built, and how far it is from one rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from llm_build import architectures
from llm_build.quant import layout
from llm_build.quant.layout import Scheme
from llm_build.runtime.engine import Engine
from llm_build.runtime.ranks import RankedModel, start_ranks
from llm_build.steps import lower
from tests.matrix import checkpoints
from tests.tvm import family_line, tiny

SIZES: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 204, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
    "pad_token_id": None,
}  # fmt: skip
MORE: dict[str, dict[str, Any]] = {  # model_type -> what it has besides the sizes and what the matrix gives it
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen3": {"tie_word_embeddings": True},
    "gemma3_text": {"num_hidden_layers": 2},
    "qwen3_moe": {"moe_intermediate_size": 128},
}
FAMILIES = {name: {**fields, **MORE.get(name, {})} for name, fields in checkpoints.FAMILIES.items()}
WHOLE = {"quantize_embedding": True, "quantize_head": True}
SCHEMES: dict[str, Scheme] = {
    **{name: tiny.SCHEMES[name] for name in ("q0f32", "q4f16_1")},
    "q8f16_1": layout.parse_scheme({"name": "q8f16_1", **tiny.GROUP, "bits": 8, "dtype": "float16", **WHOLE}),
}
ROUNDING = 2e-5  # of the spread of logits: float32 sums in another order


@dataclass(frozen=True)
class Ranked(family_line.Built):
    """An artifact for several ranks, run by processes that are up."""

    group: RankedModel | None = None

    def engine(self) -> Engine:
        return Engine({path.name: path for path in self.folder.iterdir() if path.is_file()}, group=self.group)


def build(folder: Path, family: str, scheme: str, ranks: int, group: RankedModel | None = None) -> Ranked:
    """A model in transformers, its weights as one rank's build has them, and a library for ``ranks``."""
    metadata = {"tensor_parallel_shards": ranks}
    built = family_line.build(folder, family, {**SIZES, **FAMILIES[family]}, SCHEMES[scheme], metadata)
    return Ranked(built.model, built.config_json, built.folder, built.view, group)


def also_for(built: family_line.Built, folder: Path, scheme: str, ranks: int) -> Path:
    """A library for another number of ranks, over the same weights."""
    folder.mkdir(parents=True)
    for path in (*built.folder.glob("params_shard_*"), built.folder / "tensor-cache.json"):
        os.link(path, folder / path.name)
    family = built.config_json["model_type"]
    config = architectures.load(family).from_hf(built.config_json)
    metadata = {**family_line.METADATA, "tensor_parallel_shards": ranks}
    params = tiny.lower_params(asdict(config), SCHEMES[scheme])
    lower.run({**params, "family": family, "metadata": metadata}, {}, tiny.FolderOut(folder))
    return folder


def processes_of(count: int, folder: Path) -> RankedModel:
    """That many ranks on this CPU, which have found each other; any library of as many can be loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "library.so").write_text(f'{{"tensor_parallel_shards": {count}}}')
    return start_ranks(count, folder / "library.so")


def several(built: family_line.Built, folder: Path, scheme: str, ranks: int, group: RankedModel) -> Engine:
    """The same weights on ``group``, which has that many ranks."""
    into = also_for(built, folder, scheme, ranks)
    return Engine({path.name: path for path in into.iterdir()}, group=group)


def difference(one: Engine, many: Engine) -> float:
    """The largest between the logits of both, in units of their spread: a prompt in chunks, tokens one by one, and a
    batch of two sequences."""
    tokens = np.random.default_rng(5).integers(0, one.vocab_size, 90).tolist()
    found = []
    for engine in (one, many):
        first, second = engine.add_sequence(), engine.add_sequence()
        parts = [engine.logits(first, tokens[:70]), engine.prefill(second, tokens[5:60])[None]]
        parts += [engine.decode(first, token)[None] for token in tokens[70:80]]
        parts += [engine.decode_batch([second, first], [token, token + 1]) for token in tokens[80:]]
        found.append(np.concatenate(parts))
        engine.remove_sequence(first)
        engine.remove_sequence(second)
    return float(np.abs(found[0] - found[1]).max() / found[0].std())


def weight_bytes(metadata: Mapping[str, Any]) -> tuple[int, int]:
    """(what is cut, what is whole) on a rank, by the library's metadata."""
    sizes = {True: 0, False: 0}
    for parameter in metadata["params"]:
        nbytes = int(np.prod(parameter["shape"])) * np.dtype(parameter["dtype"]).itemsize
        sizes[bool(parameter["preprocs"])] += nbytes
    return sizes[True], sizes[False]
