"""Checkpoints that others have quantized: what their config.json says, and which tensors hold a matrix.

One module per format. They agree on a plain description (Packing) and on how a matrix is read (Rows): unsigned values,
scales and zero points along the inputs, weight = (value - zero) * scale, where a symmetric format's zero is the middle,
2^(bits - 1). So a module of a model is a matrix ``X.weight`` of a logical layout, and the tensors that make it up.

Standard library only, but for what reads tensors: the planner asks for descriptions and layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

from llm_build.core.errors import UserError
from llm_build.core.fields import show_python
from llm_build.formats.quantized import known_keys

if TYPE_CHECKING:
    import numpy as np

METHODS: Mapping[str, str] = {  # quant_method of config.json -> module
    "awq": "llm_build.formats.quantized.awq",
    "gptq": "llm_build.formats.quantized.gptq",
    "compressed-tensors": "llm_build.formats.quantized.compressed_tensors",
}
SCALES = ("F16", "BF16", "F32")
USE_THE_SOURCE = "take the checkpoint that it was made from, and a scheme of `build list quant`"


@dataclass(frozen=True, slots=True)
class Packing:
    """How the matrices of a checkpoint are quantized; all of them alike."""

    method: str  # key of METHODS
    format: str  # of the method: gemm; gptq, gptq_v2; pack-quantized, int-quantized, float-quantized
    kind: str  # group: integers; e4m3
    bits: int
    group_size: int  # inputs; 0: the whole row
    zero_point: bool
    activation: str = ""  # int8: what the format's own runtime rounds inputs to, token by token


@dataclass(frozen=True, slots=True)
class Rows:
    """Some outputs of a matrix: values uint8 (R, in), float32 scales (R, groups), zeros uint8 (R, groups) or None."""

    values: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None


def describe(config: Mapping[str, Any]) -> Packing | None:
    """The packing that config.json declares, or None.

    Raises:
        UserError: it is one that no scheme holds exactly; the message names it.
    """
    quantization = config.get("quantization_config")
    if quantization in (None, {}):
        return None
    method = str(quantization.get("quant_method")) if isinstance(quantization, Mapping) else ""
    if method not in METHODS:
        raise UserError(
            f"config.json: quantization_config.quant_method is {show_python(method)}; allowed: {', '.join(METHODS)}",
            USE_THE_SOURCE,
        )
    for key, value, allowed in known_keys.unknown_values(method, quantization):
        refuse(key, value, allowed, "it may change what the weights stand for, or the computation")
    packing: Packing = import_module(METHODS[method]).describe(quantization)
    return packing


def refuse(key: str, value: object, allowed: str, why: str = "") -> NoReturn:
    """A value of quantization_config that cannot be imported."""
    reason = f" ({why})" if why else ""
    raise UserError(
        f"config.json: quantization_config.{key} is {show_python(value)}; allowed: {allowed}{reason}", USE_THE_SOURCE
    )


def _logical_layout(packing: Packing, layout: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """A layout with one tensor ``X.weight`` for the tensors of each quantized module X.

    Args:
        layout: {"tensors": {name: {"dtype", "shape"}}}, as fetch writes it.

    Returns:
        The layout, in which biases that the family has no use for may be dropped, as GPTQ's tools write zeros there
        for every module (``check`` looks at them); the dtype of a tensor ``X.weight`` is that of its scales.
        {X.weight: {"packing", "tensors": {role: {"tensor", "dtype", "shape"}}}}; the tensors that no runtime of ours
        reads.

    Raises:
        UserError: a module's tensors are missing, or of the wrong dtype or shape.
    """
    module = import_module(METHODS[packing.method])
    tensors, stored, dropped = dict(layout["tensors"]), {}, []
    mark = f".{module.mark(packing)}"
    for name in sorted(layout["tensors"]):
        if name.endswith(mark):
            stem = name.removesuffix(mark)
            roles = [role for role in module.ROLES if f"{stem}.{role}" in tensors]
            parts = {role: tensors.pop(f"{stem}.{role}") for role in roles}
            shape = module.shape(packing, stem, parts)
            dropped += [f"{stem}.{role}" for role in module.UNREAD if role in parts]
            kept = {role: {"tensor": f"{stem}.{role}", **parts[role]} for role in roles if role not in module.UNREAD}
            tensors[f"{stem}.weight"] = {"dtype": parts[module.SCALE]["dtype"], "shape": list(shape)}
            stored[f"{stem}.weight"] = {"packing": asdict(packing), "tensors": kept}
    if not stored:
        raise UserError(
            f"config.json says {packing.method}, but no tensor of the checkpoint is called *{mark}",
            "does config.json belong to these weights?",
        )
    biases = [f"{weight.removesuffix('.weight')}.bias" for weight in stored]
    biases = [name for name in biases if tensors.get(name, {}).get("dtype") in SCALES]
    return {"tensors": tensors, "droppable": biases}, stored, dropped


def packed_weight_map(
    weight_map: Callable[[Mapping[str, Any]], Any], packing: Packing, layout: Mapping[str, Any]
) -> Any:
    """A family's weight map (architectures.weights.WeightMap) over a quantized checkpoint: sources that are quantized
    say what they are ``stored`` as.

    Raises:
        UserError: see ``_logical_layout``; or a parameter is made of quantized and of other tensors.
    """
    layout, stored, dropped = _logical_layout(packing, layout)
    plain = weight_map(layout)
    for bias in set(layout["droppable"]) & set(plain.dropped):
        parts = stored[f"{bias.removesuffix('.bias')}.weight"]["tensors"]
        parts["bias"] = {"tensor": bias, **layout["tensors"][bias]}
    entries = tuple(_with_stored(entry, stored) for entry in plain.entries)
    return replace(plain, entries=entries, dropped=tuple(sorted([*plain.dropped, *dropped])))


def _with_stored(entry: Any, stored: Mapping[str, Any]) -> Any:
    sources = tuple(replace(source, stored=stored.get(source.tensor)) for source in entry.sources)
    kinds = {source.stored is not None: source.tensor for source in sources}
    if len(kinds) > 1:
        raise UserError(
            f"{entry.name} is made of {kinds[True]}, which is quantized, and {kinds[False]}, which is not; "
            "allowed: all of them quantized or none",
            USE_THE_SOURCE,
        )
    if kinds.get(True) and entry.op == "transpose":
        raise UserError(f"{entry.name}: {kinds[True]} is stored turned; allowed: (output, input)", USE_THE_SOURCE)
    return replace(entry, sources=sources)


def expect_tensor(
    stem: str, parts: Mapping[str, Any], role: str, dtypes: Sequence[str], shape: Sequence[int] | None
) -> Any:
    """One tensor of a module, {"dtype", "shape"}, if it is as the format has it. ``shape`` None: any matrix."""
    if role not in parts:
        raise UserError(
            f"{stem}.{role} is missing: the module has {', '.join(parts)}",
            "the checkpoint is not whole, or config.json is of another one",
        )
    tensor = parts[role]
    fits = len(tensor["shape"]) == 2 if shape is None else list(tensor["shape"]) == list(shape)
    if tensor["dtype"] not in dtypes or not fits:
        expected = "a matrix" if shape is None else list(shape)
        raise UserError(
            f"{stem}.{role} is {tensor['dtype']} {tensor['shape']}; expected: {' or '.join(dtypes)} {expected}",
            "does config.json belong to these weights? (bits, group_size)",
        )
    return tensor


def groups_of(stem: str, packing: Packing, inputs: int) -> int:
    """Groups of a row."""
    size = packing.group_size or inputs
    if inputs % size:
        raise UserError(
            f"{stem}: {inputs} inputs are not whole groups of {size} (quantization_config.group_size)", USE_THE_SOURCE
        )
    return inputs // size


def read(stored: Mapping[str, Any], arrays: Mapping[str, np.ndarray], start: int, stop: int) -> Rows:
    """Outputs [start, stop) of a matrix out of its tensors, each as its bytes hold it (BF16 as uint16, F8 as uint8)."""
    packing = Packing(**stored["packing"])
    rows: Rows = import_module(METHODS[packing.method]).read(packing, stored["tensors"], arrays, start, stop)
    return rows


def check(stored: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """What only the content of a matrix's tensors tells: UserError if it is not what the config says."""
    packing = Packing(**stored["packing"])
    if "bias" in arrays and (bias := scales_to_float32(arrays["bias"], stored["tensors"]["bias"]["dtype"])).any():
        raise UserError(
            f"{stored['tensors']['bias']['tensor']} is not 0 ({bias[bias.nonzero()][0]:g} is in it), and this model "
            "has no such bias; allowed: zeros, which change nothing",
            "does config.json belong to these weights? " + USE_THE_SOURCE,
        )
    import_module(METHODS[packing.method]).check(packing, stored["tensors"], arrays)


def scales_to_float32(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Scales as their bytes hold them -> float32, exactly."""
    import numpy as np

    if dtype == "BF16":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32)


def unpack_words(words: np.ndarray, bits: int, order: Sequence[int] | None = None) -> np.ndarray:
    """uint32 (A, W) -> uint8 (A, W * per word): place p of a word is its value ``order[p]`` (None: p)."""
    import numpy as np

    per_word = 32 // bits
    out = np.empty((*words.shape, per_word), np.uint8)
    for place in range(per_word):
        value = (words >> np.uint32(bits * place)) & np.uint32((1 << bits) - 1)
        out[..., place if order is None else order[place]] = value
    return out.reshape(words.shape[0], -1)
