"""Quantized parameters in the graph: how a packed weight is read back, and the modules that hold packed weights.

Axes: M rows (tokens), N outputs, K inputs, W words of a packed row, G groups of a row.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tvm import te, tirx
from tvm.relax.frontend import nn

from builder.architectures.weights import Parameter
from builder.core.errors import UserError
from builder.ops import emit as op
from builder.ops.rounded_inputs import byte_value, code_at, float8, int8, rounded
from builder.quant.layout import Scheme, is_quantized, is_transposed, packed_tensors

COMPUTE = "float32"


def dequantized(fields: Mapping[str, Any], tensors: tuple[Any, ...], n: Any, k: Any) -> Any:
    """The weight (n, k) of a packed matrix, in float32 (see builder/quant/reference.py)."""
    q_weight, q_scale = tensors[:2]
    bits, per_word, group_words = fields["bits"], fields["per_word"], fields["words_per_group"]
    group = k // fields["group_size"]
    place = k % fields["group_size"]
    row = group * group_words + place // per_word
    turned = fields["layout"] == "KN"
    word = q_weight[row, n] if turned else q_weight[n, row]
    shift = tirx.Cast("uint32", place % per_word * bits)
    stored = tirx.bitwise_and(tirx.shift_right(word, shift), tirx.const((1 << bits) - 1, "uint32"))
    if fields["zero_point"]:
        place = tirx.Cast("uint32", group % per_word * bits)
        zero = tirx.shift_right(tensors[2][n, group // per_word], place)
        zero = tirx.bitwise_and(zero, tirx.const((1 << bits) - 1, "uint32"))
        value = tirx.Cast(COMPUTE, stored) - tirx.Cast(COMPUTE, zero)
    elif fields["kind"] == "group":
        value = tirx.Cast(COMPUTE, stored) - tirx.const(fields["max_int"], COMPUTE)
    else:
        value = byte_value(stored, fields["kind"])
    row = 0 if fields["scale_per"] == "tensor" else n
    return value * tirx.Cast(COMPUTE, q_scale[group, row] if turned else q_scale[row, group])


def activation_of(fields: Mapping[str, Any]) -> str:
    """What inputs are rounded to before they meet the weight; "": they are not."""
    return "" if fields["kind"] == "none" else str(fields["activation"])


def _weight(fields: Mapping[str, Any], tensors: tuple[Any, ...], n: Any, k: Any) -> Any:
    if fields["kind"] != "none":
        return dequantized(fields, tensors, n, k)
    return tirx.Cast(COMPUTE, tensors[0][n, k])


def _rounded_product(fields: Mapping[str, Any], codes_MW: Any, scale_M1: Any, q_weight: Any, q_scale: Any) -> Any:
    """The sum of code * code, in int32 or (8-bit floats) float32, times the row's scale, times the weight's."""
    kind, outputs = fields["kind"], fields["n"]
    axis, whole = te.reduce_axis((0, fields["k"]), "k"), fields["scale_per"] == "tensor"

    def value(words: Any, row: Any, k: Any) -> Any:
        code = code_at(words, row, k)
        return int8(code) if kind == "int8" else float8(code, kind)

    sum_MN = te.compute(
        (codes_MW.shape[0], outputs),
        lambda m, n: te.sum(value(codes_MW, m, axis) * value(q_weight, n, axis), axis=axis),
        "sum",
    )
    return te.compute(
        sum_MN.shape,
        lambda m, n: tirx.Cast(COMPUTE, sum_MN[m, n]) * scale_M1[m, 0] * q_scale[0 if whole else n, 0],
        "product",
    )


def product(fields: Mapping[str, Any], x_MK: Any, *tensors: Any) -> Any:
    """y = x @ weight.T (+ bias) (+ residual); tensors: residual, weight (one or more tensors), bias. With an activation
    x is codes, and the first of the tensors the scales of their rows."""
    rest = list(tensors)
    rounded_by = rest.pop(0) if activation_of(fields) else None
    residual_MN = rest.pop(0) if fields["residual"] else None
    bias_N = rest.pop() if fields["bias"] else None
    rows, inputs, outputs = x_MK.shape[0], fields["k"], fields["n"]
    if rounded_by is not None:
        product_MN = _rounded_product(fields, x_MK, rounded_by, *rest)
    else:
        axis = te.reduce_axis((0, inputs), "k")
        weight_NK = te.compute((outputs, inputs), lambda n, k: _weight(fields, tuple(rest), n, k), "weight")
        product_MN = te.compute(
            (rows, outputs), lambda m, n: te.sum(x_MK[m, axis] * weight_NK[n, axis], axis=axis), "product"
        )
    if bias_N is None and residual_MN is None:
        return product_MN

    share = tirx.const(1 / fields["ranks"], COMPUTE) if "ranks" in fields else None

    def part(value: Any) -> Any:
        return value if share is None else value * share

    def added(m: Any, n: Any) -> Any:
        value = product_MN[m, n]
        value = value if bias_N is None else value + part(tirx.Cast(COMPUTE, bias_N[n]))
        return value if residual_MN is None else value + part(residual_MN[m, n])

    return te.compute((rows, outputs), added, "sum")


def _embedding(fields: Mapping[str, Any], ids_M: Any, *tensors: Any) -> Any:
    return te.compute((ids_M.shape[0], fields["k"]), lambda m, k: _weight(fields, tensors, ids_M[m], k), "embedding")


class Weight(nn.Module):
    """A matrix (outputs, inputs), as the scheme stores it: ``q_weight`` and ``q_scale``, or ``weight``."""

    role = "linear"  # as in architectures.weights.KINDS; a head is stored as a linear layer

    def __init__(self, outputs: int, inputs: int, scheme: Scheme, quantize: bool) -> None:
        super().__init__()
        self.outputs, self.inputs = outputs, inputs
        self.store(scheme, quantize)

    def store(self, scheme: Scheme, quantize: bool) -> None:
        """Hold the matrix as ``scheme`` does, instead of how it was held before."""
        for name in ("weight", "q_weight", "q_scale", "q_zero"):
            self.__dict__.pop(name, None)
        self.fields: dict[str, Any] = {"n": self.outputs, "k": self.inputs, "kind": "none", "dtype": scheme.dtype}
        if not quantize or scheme.kind == "none":
            self.weight = nn.Parameter((self.outputs, self.inputs), scheme.dtype)
            return
        parameter = Parameter("it.weight", (self.outputs, self.inputs), self.role)
        words, scales, *zeros = packed_tensors(parameter, scheme)
        self.q_weight = nn.Parameter(words.shape, words.dtype)
        self.q_scale = nn.Parameter(scales.shape, scales.dtype)
        for zero in zeros:
            self.q_zero = nn.Parameter(zero.shape, zero.dtype)
        fitted = scheme.for_width(self.inputs)
        self.fields |= {
            "kind": scheme.kind,
            "layout": "KN" if is_transposed(parameter, scheme) else "NK",
            "bits": scheme.bits,
            "group_size": fitted.group_size,
            "per_word": fitted.per_word,
            "words_per_group": fitted.words_per_group,
            "max_int": scheme.max_int,
            "scale_dtype": scheme.scale_dtype,
            "scale_per": scheme.scale_per,
            "activation": scheme.activation,
            "zero_point": scheme.zero_point,
        }

    def stored(self) -> list[nn.Tensor]:
        if self.fields["kind"] == "none":
            return [self.weight]
        return [self.q_weight, self.q_scale, *([self.q_zero] if self.fields["zero_point"] else [])]


class Linear(Weight):
    """y = x @ weight.T (+ bias) (+ residual); x (M, K) float32, y (M, N) float32."""

    def __init__(self, outputs: int, inputs: int, scheme: Scheme, bias: bool = False, quantize: bool = True) -> None:
        super().__init__(outputs, inputs, scheme, quantize)
        self.bias = nn.Parameter((outputs,), scheme.dtype) if bias else None

    def forward(self, x_MK: nn.Tensor, residual_MN: nn.Tensor | None = None) -> nn.Tensor:
        return project(self, x_MK, self.bias, residual_MN)


class Embedding(Weight):
    """Rows of a table: ids (M,) int32 -> (M, K) float32. A tied head uses the same table as a matrix."""

    role = "embedding"

    def forward(self, ids_M: nn.Tensor) -> nn.Tensor:
        shape = (ids_M.shape[0], self.fields["k"])
        fields = self.fields if self.fields["kind"] == "none" else {**self.fields, "activation": ""}
        return op.emit("embedding", _embedding, fields, [ids_M], self.stored(), shape)

    def head(self, x_MK: nn.Tensor) -> nn.Tensor:
        return project(self, x_MK, None, None)


def apply_rules(model: nn.Module, parameters: Iterable[Parameter], scheme: Scheme) -> None:
    """Hold each weight of a model, built with the scheme, as the rules of the scheme say.

    Raises:
        UserError: a rule holds for a weight that the family's graph keeps in a module of another kind.
    """
    modules = {f"{name}.weight": module for name, module in weights_of(model, "")}
    for parameter in parameters:
        if parameter.name in modules:
            modules[parameter.name].store(scheme.for_parameter(parameter.name), is_quantized(parameter, scheme))
        elif len(parameter.shape) > 1 and any(rule.matches(parameter.name) for rule in scheme.rules):
            raise UserError(f"quant.rules: {parameter.name} cannot have a scheme of its own", "change the rule's match")


def weights_of(module: Any, name: str) -> Iterator[tuple[str, Weight]]:
    """Every Weight below a module, with its name."""
    if isinstance(module, Weight):
        yield name, module
        return
    inside = enumerate(module) if isinstance(module, nn.ModuleList) else module.__dict__.items()
    for key, item in inside:
        if isinstance(item, nn.Module):
            yield from weights_of(item, f"{name}.{key}" if name else str(key))


def project(
    weight: Weight, x_MK: nn.Tensor, bias: nn.Tensor | None, residual_MN: nn.Tensor | None, ranks: int = 1
) -> nn.Tensor:
    """x @ weight.T with what is added to it, as one operation. ``ranks``: that have the columns of x between them; each
    adds its share of bias and residual (for 2, 4 or 8 ranks that is exact), so that the library is the same for all."""
    fields = {**weight.fields, "bias": bias is not None, "residual": residual_MN is not None}
    fields |= {"ranks": ranks} if ranks > 1 else {}
    activation = activation_of(fields)
    activations = rounded(x_MK, fields["k"], activation, ranks) if activation else [x_MK]
    if residual_MN is not None:
        activations.append(residual_MN)
    stored = weight.stored() if bias is None else [*weight.stored(), bias]
    return op.emit("linear", product, fields, activations, stored, (x_MK.shape[0], fields["n"]))
