"""The modules of every family, built for several ranks, have the parameters that the cut weights have."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from llm_build import architectures
from llm_build.models.decoder import Model
from llm_build.ops.weights import apply_rules
from llm_build.quant import cuts
from tests.matrix.checkpoints import FAMILIES
from tests.tvm.tiny import METADATA
from tests.weights.test_cuts import SCHEMES, config_of, scheme_named


@pytest.mark.parametrize("family", FAMILIES)
def test_modules_have_the_shapes_of_cut_weights(family: str) -> None:
    module = architectures.load(family)
    for changes in ({}, {"tie_word_embeddings": True}):
        config: Any = config_of(family, **changes)
        table = module.parameters(config)
        for name in SCHEMES:
            scheme = scheme_named(name, table)
            for shards in (1, 2, 4):
                model = Model(module.describe(config), scheme, {**METADATA, "tensor_parallel_shards": shards})
                if scheme.rules:
                    apply_rules(model, table, scheme)
                found = {k: ([int(axis) for axis in p.shape], p.dtype) for k, p in model.named_parameters()}
                shares = cuts.split_tensors(table, module.cuts(config), scheme, shards)
                assert found == {k: (list(s.local.shape), s.local.dtype) for k, s in shares.items()}, (name, shards)
    assert asdict(config)["tie_word_embeddings"] is True


def test_ranks_agree_on_the_scales_of_rounded_inputs() -> None:
    """Of the matrices that each has some of the inputs of: two in each layer."""
    module = architectures.load("llama")
    config = config_of("llama", num_hidden_layers=2)
    scheme = scheme_named("w8a8", module.parameters(config))
    model = Model(module.describe(config), scheme, {**METADATA, "tensor_parallel_shards": 2})
    graph, _ = model.export_tvm(spec=model.functions())
    text = graph["decode"].script()
    assert text.count("ccl.allreduce") == 8
    assert text.count('op_type="max"') == 4
