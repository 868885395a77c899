"""Rows of a table for ids. Axes: M rows (tokens), K features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tvm import te
from tvm.relax.frontend import nn

from llm_build.ops import emit as op
from llm_build.ops.linear import project
from llm_build.ops.weights import StoredWeight, Weight, weight_at


@dataclass(frozen=True, slots=True)
class EmbeddingLabel(op.Label):
    op: ClassVar[str] = "embedding"

    weight: StoredWeight


def _embedding(label: EmbeddingLabel, ids_M: Any, *tensors: Any) -> Any:
    return te.compute(
        (ids_M.shape[0], label.weight.k), lambda m, k: weight_at(label.weight, tensors, ids_M[m], k), "embedding"
    )


class Embedding(Weight):
    """Rows of a table: ids (M,) int32 -> (M, K) float32. A tied head uses the same table as a matrix."""

    role = "embedding"

    def forward(self, ids_M: nn.Tensor) -> nn.Tensor:
        shape = (ids_M.shape[0], self.storage.k)
        return op.emit(EmbeddingLabel(self.storage), _embedding, [ids_M], self.tensors(), shape)

    def head(self, x_MK: nn.Tensor) -> nn.Tensor:
        return project(self, x_MK, None, None)
