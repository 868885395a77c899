"""quant=imported: the scheme of a checkpoint that is quantized already, read from its config.json and headers.

The integers, scales and zero points are taken over as they are, so that the artifact computes with exactly the
checkpoint's weights. Matrices that the checkpoint does not quantize are kept as they are, by rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from llm_build import architectures
from llm_build.architectures.weights import Entry, WeightMap
from llm_build.config.schema import Checkpoint, Quant, Recipe
from llm_build.core.errors import UserError
from llm_build.core.fields import show_python
from llm_build.formats import quantized, safetensors
from llm_build.formats.quantized import USE_THE_SOURCE, Packing

METHOD = "imported"
_KEY = "quantization_config"  # of config.json
_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_SHORT = {"float16": "f16", "bfloat16": "bf16", "float32": "f32"}


def check(quant: Quant, checkpoint: Checkpoint) -> None:
    """Raises UserError when a quantized checkpoint is to be quantized again, or another one to be imported."""
    is_quantized, is_imported = checkpoint.config.get(_KEY) not in (None, {}), quant.method == METHOD
    _refuse_formats_of_others(checkpoint)
    if quant.packing:
        raise UserError("quant.packing is what the checkpoint says; it cannot be set", "build quant=imported")
    if is_quantized and not is_imported:
        how = checkpoint.config[_KEY]["quant_method"]
        raise UserError(
            f"the checkpoint is quantized already ({how}); quantizing its weights again (quant={quant.name}, method "
            f"{quant.method}) would add a second rounding error to the first",
            f"build quant=imported, which takes them over exactly; or {USE_THE_SOURCE}",
        )
    if is_imported and not is_quantized:
        raise UserError(
            f"quant=imported: {checkpoint.root / 'config.json'} has no {_KEY}: the checkpoint is not quantized",
            "build list quant   shows the schemes that quantize it",
        )
    if is_imported and (quant.rules or quant.budget is not None):
        raise UserError(
            "quant=imported: quant.rules and quant.budget choose schemes to round to; the checkpoint has its own",
            "build quant=imported",
        )
    if is_imported and checkpoint.format != "safetensors":
        raise UserError(
            "quant=imported: the checkpoint is in .bin files; allowed: safetensors, whose headers say what is packed",
            "convert it with safetensors.torch.save_file",
        )


def _refuse_formats_of_others(checkpoint: Checkpoint) -> None:
    """Raises UserError for a checkpoint that is quantized in a way that quant=imported does not read either."""
    quantization, mlx = checkpoint.config.get(_KEY), checkpoint.config.get("quantization")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if isinstance(mlx, Mapping) and "group_size" in mlx and not method:
        bits, size = show_python(mlx.get("bits")), show_python(mlx["group_size"])
        raise UserError(
            f"{checkpoint.root} is quantized by MLX ({bits} bits in groups of {size}), whose "
            "packing is not read here, by quant=imported neither",
            USE_THE_SOURCE,
        )
    older = "compression_config" if checkpoint.config.get("compression_config") else "quantize_config.json"
    if quantization in (None, {}) and (older in checkpoint.config or (checkpoint.root / older).is_file()):
        raise UserError(
            f"{checkpoint.root} is quantized already, as {older} says; quant=imported reads {_KEY} of config.json, "
            "where the tools of today write that",
            f"save it again with a newer version of the tool that made it; or {USE_THE_SOURCE}",
        )
    if quantization not in (None, {}) and not (isinstance(method, str) and method in quantized.METHODS):
        named = f"quant_method {show_python(method)}" if method else "no quant_method"
        raise UserError(
            f"{checkpoint.root / 'config.json'}: {_KEY} has {named}; quant=imported reads "
            f"{', '.join(quantized.METHODS)}",
            USE_THE_SOURCE,
        )


def without_quantization(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as a family reads it: how its weights are stored changes no maths."""
    return replace(checkpoint, config={key: value for key, value in checkpoint.config.items() if key != _KEY})


def imported_quant(quant: Quant, checkpoint: Checkpoint, family: str, architecture: Mapping[str, Any]) -> Quant:
    """The scheme that holds a quantized checkpoint exactly.

    Of an hf:// checkpoint that is still to be downloaded only config.json is known: then all linear layers are taken to
    be quantized, and asked again after the download.

    Raises:
        UserError: no scheme holds it, or its tensors are not what config.json says.
    """
    packing = quantized.describe(checkpoint.config)
    assert packing is not None
    if checkpoint.missing:
        entries: Sequence[Entry] = ()
    else:
        entries = weight_map(family, architecture, packing, layout_of(checkpoint)).entries
    quant = replace(quant, packing=asdict(packing), layout="NK", storage_dtype="uint32", bits=packing.bits)
    quant = replace(quant, kind=packing.kind, group_size=packing.group_size, zero_point=packing.zero_point)
    if packing.activation:
        quant = replace(quant, kind="int8", activation=packing.activation, activation_scale="dynamic")
    quant = replace(quant, dtype=_dtype_of(entries), name="")
    kinds = {entry.parameter.kind for entry in entries if entry.is_stored}
    left = [entry.name for entry in entries if entry.parameter.kind == "linear" and not entry.is_stored]
    return replace(
        quant, name=_name_of(quant), quantize_embedding="embedding" in kinds, quantize_head="head" in kinds,
        rules=(_rule_to_keep(left, quant.dtype),) if left else (),
    )  # fmt: skip


def with_scheme_of_headers(recipe: Recipe) -> Recipe:
    """The recipe with its scheme as the headers tell it, now that the checkpoint is whole."""
    if not recipe.quant.packing:
        return recipe
    return replace(recipe, quant=imported_quant(recipe.quant, recipe.checkpoint, recipe.family, recipe.architecture))


def _dtype_of(entries: Sequence[Entry]) -> str:
    """Of the scales, so that they are taken over exactly; float32 where they differ."""
    dtypes = {source.dtype for entry in entries for source in entry.sources if source.stored} or {"F16"}
    return _DTYPES[dtypes.pop()] if len(dtypes) == 1 else "float32"


def _name_of(quant: Quant) -> str:
    """As the shipped schemes are named: q4f16_zp128, q4f16_g128, e4m3_f16, int8_int8_f16; ch: one group per row."""
    dtype = _SHORT[quant.dtype]
    if quant.kind != "group":
        return f"{quant.kind}_{quant.activation}_{dtype}" if quant.activation else f"{quant.kind}_{dtype}"
    return f"q{quant.bits}{dtype}_{'zp' if quant.zero_point else 'g'}{quant.group_size or 'ch'}"


def _rule_to_keep(names: list[str], dtype: str) -> dict[str, Any]:
    """Keeps these parameters as they are, in the form of quant/rules.py's results."""
    use = {
        "name": f"q0{_SHORT[dtype]}", "kind": "none", "bits": 0, "group_size": 0, "layout": "", "dtype": dtype,
        "storage_dtype": "", "quantize_embedding": True, "quantize_head": True,
    }  # fmt: skip
    return {"match": [name.removesuffix(".weight") for name in names], "layers": None, "use": use}


def layout_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """{"tensors": {name: {"dtype", "shape"}}} from the headers, as fetch writes it."""
    files = [name for name in checkpoint.files if name.endswith(".safetensors")]
    tensors = [tensor for name in files for tensor in safetensors.read_header(checkpoint.root / name, name)]
    return {"tensors": {t.name: {"dtype": t.dtype, "shape": list(t.shape)} for t in tensors}}


def weight_map(
    family: str, architecture: Mapping[str, Any], packing: Packing | None, layout: Mapping[str, Any]
) -> WeightMap:
    """The weight map of a model over a checkpoint, which may be quantized."""
    described = architectures.load(family)
    map_of = partial(described.weight_map, described.from_architecture(architecture))
    if packing is None:
        return map_of(layout)
    packed: WeightMap = quantized.packed_weight_map(map_of, packing, layout)
    return packed
