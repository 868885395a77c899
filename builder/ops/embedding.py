"""Rows of a table for ids. Axes: M rows (tokens), K features."""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te
from tvm.relax.frontend import nn

from builder.ops import emit as op
from builder.ops.linear import project
from builder.ops.weights import Weight, weight_at


def _embedding(fields: Mapping[str, Any], ids_M: Any, *tensors: Any) -> Any:
    return te.compute((ids_M.shape[0], fields["k"]), lambda m, k: weight_at(fields, tensors, ids_M[m], k), "embedding")


class Embedding(Weight):
    """Rows of a table: ids (M,) int32 -> (M, K) float32. A tied head uses the same table as a matrix."""

    role = "embedding"

    def forward(self, ids_M: nn.Tensor) -> nn.Tensor:
        shape = (ids_M.shape[0], self.fields["k"])
        fields = self.fields if self.fields["kind"] == "none" else {**self.fields, "activation": ""}
        return op.emit("embedding", _embedding, fields, [ids_M], self.stored(), shape)

    def head(self, x_MK: nn.Tensor) -> nn.Tensor:
        return project(self, x_MK, None, None)
