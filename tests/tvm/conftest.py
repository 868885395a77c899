"""Artifacts of tiny models, each built once for all tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_build.targets.tvm_import import import_tvm

import_tvm()  # with the compiler, before anything loads only its runtime

from llm_build import architectures  # noqa: E402
from llm_build.runtime.engine import Engine  # noqa: E402
from tests.tvm import tiny  # noqa: E402

SHAPES: dict[str, dict[str, Any]] = {
    "grouped": {},
    "odd": {  # one key head for five, heads wider than hidden / heads, a tied head, biases, padded groups
        "hidden_size": 75, "intermediate_size": 90, "num_attention_heads": 5, "num_key_value_heads": 1, "head_dim": 20,
        "vocab_size": 101, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True, "rope_theta": 5e5,
    },
    "narrow": {  # nothing divides by a vector
        "hidden_size": 51, "intermediate_size": 70, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 6,
        "vocab_size": 33, "rms_norm_eps": 1e-3,
    },
    "wide": {  # key groups of 4 and 80 features, as in 3B models
        "hidden_size": 96, "intermediate_size": 160, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 80,
        "num_hidden_layers": 1,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Built:
    """A transformers model (with the weights that the artifact stands for) and the artifact."""

    architecture: dict[str, Any]
    model: Any
    folder: Path

    def engine(self) -> Engine:
        return Engine.from_folder(self.folder)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Built]:
    """built(shape, scheme)."""
    done: dict[tuple[str, str], Built] = {}

    def build(shape: str, scheme: str) -> Built:
        if (shape, scheme) not in done:
            done[shape, scheme] = make(tmp_path_factory.mktemp(f"{shape}-{scheme}"), shape, scheme)
        return done[shape, scheme]

    return build


def make(folder: Path, shape: str, scheme: str) -> Built:
    import numpy as np
    import torch

    architecture = {**tiny.BASE, **SHAPES[shape]}
    model = tiny.transformers_model(architecture)
    tensors = {name: array.copy() for name, array in tiny.checkpoint(model).items()}
    tiny.write_artifact(folder, architecture, tensors, tiny.SCHEMES[scheme])
    config = architectures.load("llama").from_architecture(architecture)
    as_stored = tiny.dequantized(config, tensors, tiny.SCHEMES[scheme])
    with torch.no_grad():
        named = dict(model.named_parameters())
        for name, array in as_stored.items():
            named[name].copy_(torch.from_numpy(np.ascontiguousarray(array)))
    return Built(architecture, model, folder)
