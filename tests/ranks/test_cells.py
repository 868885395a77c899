"""Four families in three schemes on 2 and 4 ranks of this CPU: one rank's logits, and a share of its memory each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from llm_build.runtime.ranks import RankedModel
from llm_build.targets.tvm_import import import_tvm

import_tvm()  # with the compiler, before anything loads only its runtime

from tests.ranks import cells  # noqa: E402

COUNTS = (2, 4)
HEADS = ("num_attention_heads", "num_key_value_heads")


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[int, RankedModel]]:
    found = {count: cells.processes_of(count, tmp_path_factory.mktemp("none")) for count in COUNTS}
    yield found
    for group in found.values():
        group.close()


@pytest.mark.parametrize("scheme", cells.SCHEMES)
@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen2", "mixtral"])
def test_ranks_give_the_logits_of_one(family: str, scheme: str, groups: dict[int, RankedModel], tmp_path: Path):
    built = cells.build(tmp_path / "one", family, scheme, 1)
    one = built.engine()
    for count, group in groups.items():
        many = cells.several(built, tmp_path / str(count), scheme, count, group)
        assert cells.difference(one, many) < cells.ROUNDING
        shares(one.metadata, many.metadata, count)


def shares(one: Mapping[str, Any], many: Mapping[str, Any], count: int) -> None:
    """All but embedding, norms and router is cut, into parts that come to the bytes of one rank, but for key heads that
    several ranks hold; so are the cache's heads."""
    cut, whole = cells.weight_bytes(many)
    total = sum(cells.weight_bytes(one))
    queries, keys = ((one["kv_cache"][name], many["kv_cache"][name]) for name in HEADS)
    copies = max(1, count // keys[0])
    assert whole < 0.1 * total
    assert count * cut + whole == total if copies == 1 else total < count * cut + whole < 1.1 * total
    assert queries[1] * count == queries[0]
    assert keys[1] * count == keys[0] * copies
