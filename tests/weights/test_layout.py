"""Schemes are checked, and packed shapes follow the format."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from llm_build.architectures.weights import Parameter
from llm_build.core.errors import UserError
from llm_build.quant.layout import StoredTensor, parse_scheme, stored_tensors
from tests.weights.weights_line import group_scheme, plain_scheme

Q4 = group_scheme("q4f16_1")
BYTES = {"kind": "int8", "bits": 8, "group_size": 0, "activation": "int8", "activation_scale": "dynamic"}
MATRIX = Parameter("a.down_proj.weight", (64, 688), "linear")


def test_a_scheme_is_its_dict() -> None:
    for found in (Q4, plain_scheme("q0f32", "float32")):
        assert parse_scheme(asdict(found)) == found


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"bits": 1}, "quant.bits: found 1 in 'q4f16_1'; allowed: 2, 3"),
        ({"bits": "4"}, "quant.bits: found '4'; allowed: a value of type int"),
        ({"group_size": 4}, "quant.group_size: found 4"),
        ({"layout": "KM"}, "quant.layout: found 'KM'"),
        ({"dtype": "int8"}, "quant.dtype: found 'int8'"),
        ({"kind": "magic"}, "quant.kind: found 'magic'"),
        ({"kind": "none"}, "quant.bits: found 4"),
        ({"storage_dtype": "uint8"}, "quant.storage_dtype: found 'uint8'"),
        ({"quantize_head": 1}, "quant.quantize_head: found 1; allowed: a value of type bool"),
        ({"activation": "int8"}, "quant.activation: found 'int8' in 'q4f16_1'; allowed: ''"),
        ({"scale_per": "tensor"}, "quant.scale_per: found 'tensor' in 'q4f16_1'; allowed: 'group'"),
        ({**BYTES, "activation_scale": ""}, "quant.activation_scale: found '' in 'q4f16_1' with activation 'int8'"),
        ({**BYTES, "activation": ""}, "quant.activation_scale: found 'dynamic' in 'q4f16_1' with activation ''"),
        ({**BYTES, "activation": "e4m3"}, "quant.activation: found 'e4m3' in 'q4f16_1'; allowed: '', 'int8'"),
        ({**BYTES, "activation_scale": "static"}, "quant.activation_scale: found 'static' in 'q4f16_1'; allowed: '', "),
        ({**BYTES, "group_size": 32}, "quant.group_size: found 32 in 'q4f16_1'; allowed: 0, as one scale serves"),
        ({**BYTES, "bits": 4}, "quant.bits: found 4 in 'q4f16_1'; allowed: 8"),
        ({"groupsize": 32}, "quant.groupsize is not a key of a scheme; did you mean group_size"),
    ],
)
def test_wrong_schemes(change: dict[str, Any], found: str) -> None:
    with pytest.raises(UserError) as error:
        parse_scheme({**asdict(Q4), **change})
    assert error.value.message.startswith(found)
    with pytest.raises(UserError, match=r"quant\.bits is missing"):
        parse_scheme({key: value for key, value in asdict(Q4).items() if key != "bits"})


def test_packed_shapes() -> None:
    assert stored_tensors(MATRIX, Q4) == [
        StoredTensor("a.down_proj.q_weight", (64, 88), "uint32", "weight"),
        StoredTensor("a.down_proj.q_scale", (64, 22), "float16", "scale"),
    ]
    q3 = group_scheme("q3f16_1", bits=3, group_size=40)
    assert [piece.shape for piece in stored_tensors(MATRIX, q3)] == [(64, 72), (64, 18)]  # 688 / 40 leaves a rest
    q5 = group_scheme("q5g64", bits=5, group_size=64, dtype="float32")
    assert [piece.shape for piece in stored_tensors(MATRIX, q5)] == [
        (64, 11 * 11),
        (64, 11),
    ]  # 64 fives: 11 words
    assert [piece.nbytes for piece in stored_tensors(MATRIX, Q4)] == [64 * 88 * 4, 64 * 22 * 2]


def test_which_kinds_are_packed() -> None:
    def roles(kind: str, shape: tuple[int, ...], **changes: Any) -> list[str]:
        return [p.role for p in stored_tensors(Parameter("x.weight", shape, kind), group_scheme("q", **changes))]

    assert roles("embedding", (8, 64)) == ["weight", "scale"]
    assert roles("embedding", (8, 64), quantize_embedding=False) == ["plain"]
    assert roles("head", (8, 64), quantize_head=False) == ["plain"]
    assert roles("norm", (64,)) == ["plain"]
    assert roles("bias", (64,)) == ["plain"]
    assert stored_tensors(MATRIX, plain_scheme("q0f32", "float32")) == [
        StoredTensor(MATRIX.name, (64, 688), "float32", "plain")
    ]


def test_shapes_that_a_scheme_cannot_hold() -> None:
    with pytest.raises(UserError, match=r"groups of 32 weights; a\.weight is only 24 wide"):
        stored_tensors(Parameter("a.weight", (64, 24), "linear"), Q4)
    with pytest.raises(UserError, match=r"q4f16_1 packs matrices; a\.weight has shape \[2, 64, 64\]"):
        stored_tensors(Parameter("a.weight", (2, 64, 64), "linear"), Q4)
