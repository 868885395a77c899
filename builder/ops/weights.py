"""Parameters in the graph: how a stored weight is read back, and the module that holds one.

Axes: N outputs, K inputs, W words of a packed row, G groups of a row.
"""

# mypy: disable-error-code="misc"
from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.relax.frontend import nn

from llm_build.architectures.weights import Parameter
from llm_build.core.errors import UserError
from llm_build.ops.byte_codes import byte_value
from llm_build.quant.layout import Scheme, is_quantized, is_transposed, packed_tensors

COMPUTE = "float32"


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """How a matrix (n outputs, k inputs) is stored: of ``kind`` none as it is, in ``dtype``; else packed
    (quant/layout.py). ``dtype`` is also that of a bias beside it."""

    n: int
    k: int
    kind: str  # none | group | int8 | e4m3 | e5m2
    dtype: str
    layout: str = "NK"  # NK | KN
    bits: int = 0
    group_size: int = 0
    per_word: int = 0
    words_per_group: int = 0
    max_int: int = 0
    scale_dtype: str = ""
    scale_per: str = "group"  # group | tensor
    zero_point: bool = False


def _dequantized(stored_as: StoredWeight, tensors: tuple[Any, ...], n: Any, k: Any) -> Any:
    """The weight (n, k) of a packed matrix, in float32 (see builder/quant/reference.py)."""
    q_weight, q_scale = tensors[:2]
    bits, per_word, group_words = stored_as.bits, stored_as.per_word, stored_as.words_per_group
    group = k // stored_as.group_size
    place = k % stored_as.group_size
    row = group * group_words + place // per_word
    turned = stored_as.layout == "KN"
    word = q_weight[row, n] if turned else q_weight[n, row]
    shift = tirx.Cast("uint32", place % per_word * bits)
    stored = tirx.bitwise_and(tirx.shift_right(word, shift), tirx.const((1 << bits) - 1, "uint32"))
    if stored_as.zero_point:
        place = tirx.Cast("uint32", group % per_word * bits)
        zero = tirx.shift_right(tensors[2][n, group // per_word], place)
        zero = tirx.bitwise_and(zero, tirx.const((1 << bits) - 1, "uint32"))
        value = tirx.Cast(COMPUTE, stored) - tirx.Cast(COMPUTE, zero)
    elif stored_as.kind == "group":
        value = tirx.Cast(COMPUTE, stored) - tirx.const(stored_as.max_int, COMPUTE)
    else:
        value = byte_value(stored, stored_as.kind)
    row = 0 if stored_as.scale_per == "tensor" else n
    return value * tirx.Cast(COMPUTE, q_scale[group, row] if turned else q_scale[row, group])


def weight_at(stored_as: StoredWeight, tensors: tuple[Any, ...], n: Any, k: Any) -> Any:
    if stored_as.kind != "none":
        return _dequantized(stored_as, tensors, n, k)
    return tirx.Cast(COMPUTE, tensors[0][n, k])


class Weight(nn.Module):
    """A matrix (outputs, inputs), as the scheme stores it: ``q_weight`` and ``q_scale``, or ``weight``.
    ``activation``: what inputs are rounded to before they meet the matrix; "": they are not."""

    role = "linear"  # as in architectures.weights.KINDS; a head is stored as a linear layer

    def __init__(self, outputs: int, inputs: int, scheme: Scheme, quantize: bool) -> None:
        super().__init__()
        self.outputs, self.inputs = outputs, inputs
        self.store(scheme, quantize)

    def store(self, scheme: Scheme, quantize: bool) -> None:
        """Hold the matrix as ``scheme`` does, instead of how it was held before."""
        for name in ("weight", "q_weight", "q_scale", "q_zero"):
            self.__dict__.pop(name, None)
        self.activation = ""
        self.storage = StoredWeight(n=self.outputs, k=self.inputs, kind="none", dtype=scheme.dtype)
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
        self.activation = scheme.activation
        self.storage = replace(
            self.storage,
            kind=scheme.kind,
            layout="KN" if is_transposed(parameter, scheme) else "NK",
            bits=scheme.bits,
            group_size=fitted.group_size,
            per_word=fitted.per_word,
            words_per_group=fitted.words_per_group,
            max_int=scheme.max_int,
            scale_dtype=scheme.scale_dtype,
            scale_per=scheme.scale_per,
            zero_point=scheme.zero_point,
        )

    def tensors(self) -> list[nn.Tensor]:
        """What ``storage`` describes."""
        if self.storage.kind == "none":
            return [self.weight]
        return [self.q_weight, self.q_scale, *([self.q_zero] if self.storage.zero_point else [])]


def apply_rules(model: nn.Module, parameters: Iterable[Parameter], scheme: Scheme) -> None:
    """Hold each weight of a model, built with the scheme, as the rules of the scheme say.

    Raises:
        UserError: a rule holds for a weight that the family's graph keeps in a module of another kind.
    """
    modules = {f"{name}.weight": module for name, module in _weights_of(model, "")}
    for parameter in parameters:
        if parameter.name in modules:
            modules[parameter.name].store(scheme.for_parameter(parameter.name), is_quantized(parameter, scheme))
        elif len(parameter.shape) > 1 and any(rule.matches(parameter.name) for rule in scheme.rules):
            raise UserError(f"quant.rules: {parameter.name} cannot have a scheme of its own", "change the rule's match")


def _weights_of(module: Any, name: str) -> Iterator[tuple[str, Weight]]:
    """Every Weight below a module, with its name."""
    if isinstance(module, Weight):
        yield name, module
        return
    inside = enumerate(module) if isinstance(module, nn.ModuleList) else module.__dict__.items()
    for key, item in inside:
        if isinstance(item, nn.Module):
            yield from _weights_of(item, f"{name}.{key}" if name else str(key))
