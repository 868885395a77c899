"""Quantized parameters in the graph: how a packed weight is read back, and the modules that hold packed weights.

Axes: M rows (tokens), N outputs, K inputs, W words of a packed row, G groups of a row.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend import nn

from builder.lowering import op
from builder.quant.layout import Scheme

COMPUTE = "float32"


def dequantized(fields: Mapping[str, Any], q_weight_NW: Any, q_scale_NG: Any, n: Any, k: Any) -> Any:
    """The weight (n, k) of a packed matrix: (stored - max_int) * scale, in float32 (see builder/quant/layout.py)."""
    bits, per_word, group_words = fields["bits"], fields["per_word"], fields["words_per_group"]
    group = k // fields["group_size"]
    place = k % fields["group_size"]
    word = q_weight_NW[n, group * group_words + place // per_word]
    shift = tirx.Cast("uint32", place % per_word * bits)
    stored = tirx.bitwise_and(tirx.shift_right(word, shift), tirx.const((1 << bits) - 1, "uint32"))
    value = tirx.Cast(COMPUTE, stored) - tirx.const(fields["max_int"], COMPUTE)
    return value * tirx.Cast(COMPUTE, q_scale_NG[n, group])


def _weight(fields: Mapping[str, Any], tensors: tuple[Any, ...], n: Any, k: Any) -> Any:
    if fields["kind"] == "group":
        return dequantized(fields, tensors[0], tensors[1], n, k)
    return tirx.Cast(COMPUTE, tensors[0][n, k])


def _linear(fields: Mapping[str, Any], x_MK: Any, *tensors: Any) -> Any:
    """y = x @ weight.T (+ bias) (+ residual); tensors: residual, weight (one or two tensors), bias."""
    rest = list(tensors)
    residual_MN = rest.pop(0) if fields["residual"] else None
    bias_N = rest.pop() if fields["bias"] else None
    rows, inputs, outputs = x_MK.shape[0], fields["k"], fields["n"]
    axis = te.reduce_axis((0, inputs), "k")
    weight_NK = te.compute((outputs, inputs), lambda n, k: _weight(fields, tuple(rest), n, k), "weight")
    product_MN = te.compute(
        (rows, outputs), lambda m, n: te.sum(x_MK[m, axis] * weight_NK[n, axis], axis=axis), "product"
    )
    if bias_N is None and residual_MN is None:
        return product_MN

    def added(m: Any, n: Any) -> Any:
        value = product_MN[m, n]
        value = value if bias_N is None else value + tirx.Cast(COMPUTE, bias_N[n])
        return value if residual_MN is None else value + residual_MN[m, n]

    return te.compute((rows, outputs), added, "sum")


def _embedding(fields: Mapping[str, Any], ids_M: Any, *tensors: Any) -> Any:
    return te.compute((ids_M.shape[0], fields["k"]), lambda m, k: _weight(fields, tensors, ids_M[m], k), "embedding")


class Weight(nn.Module):
    """A matrix (outputs, inputs), as the scheme stores it: ``q_weight`` and ``q_scale``, or ``weight``."""

    def __init__(self, outputs: int, inputs: int, scheme: Scheme, quantize: bool) -> None:
        super().__init__()
        self.fields: dict[str, Any] = {"n": outputs, "k": inputs, "kind": "none", "dtype": scheme.dtype}
        if quantize and scheme.kind == "group":
            groups = -(-inputs // scheme.group_size)
            self.q_weight = nn.Parameter((outputs, groups * scheme.words_per_group), scheme.storage_dtype)
            self.q_scale = nn.Parameter((outputs, groups), scheme.dtype)
            self.fields |= {
                "kind": scheme.kind,
                "bits": scheme.bits,
                "group_size": scheme.group_size,
                "per_word": scheme.per_word,
                "words_per_group": scheme.words_per_group,
                "max_int": scheme.max_int,
            }
        else:
            self.weight = nn.Parameter((outputs, inputs), scheme.dtype)

    def stored(self) -> list[nn.Tensor]:
        return [self.q_weight, self.q_scale] if self.fields["kind"] == "group" else [self.weight]


class Linear(Weight):
    """y = x @ weight.T (+ bias) (+ residual); x (M, K) float32, y (M, N) float32."""

    def __init__(self, outputs: int, inputs: int, scheme: Scheme, bias: bool = False, quantize: bool = True) -> None:
        super().__init__(outputs, inputs, scheme, quantize)
        self.bias = nn.Parameter((outputs,), scheme.dtype) if bias else None

    def forward(self, x_MK: nn.Tensor, residual_MN: nn.Tensor | None = None) -> nn.Tensor:
        return project(self, x_MK, self.bias, residual_MN)


class Embedding(Weight):
    """Rows of a table: ids (M,) int32 -> (M, K) float32. A tied head uses the same table as a matrix."""

    def forward(self, ids_M: nn.Tensor) -> nn.Tensor:
        shape = (ids_M.shape[0], self.fields["k"])
        return op.emit("embedding", _embedding, self.fields, [ids_M], self.stored(), shape)

    def head(self, x_MK: nn.Tensor) -> nn.Tensor:
        return project(self, x_MK, None, None)


def project(weight: Weight, x_MK: nn.Tensor, bias: nn.Tensor | None, residual_MN: nn.Tensor | None) -> nn.Tensor:
    """x @ weight.T with what is added to it, as one operation."""
    fields = {**weight.fields, "bias": bias is not None, "residual": residual_MN is not None}
    activations = [x_MK] if residual_MN is None else [x_MK, residual_MN]
    stored = weight.stored() if bias is None else [*weight.stored(), bias]
    return op.emit("linear", _linear, fields, activations, stored, (x_MK.shape[0], fields["n"]))
