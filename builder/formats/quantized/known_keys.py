"""Keys of quantization_config, by quant_method: those that are read, and the values of the others that change nothing.

A key that is not here, or has another value, may stand for a computation that no scheme does (a rotation of the inputs,
an adapter, a kernel's own layout), so it is refused by name. docs/guides/import.md shows the table.
Sources: AwqConfig, GPTQConfig and CompressedTensorsConfig in transformers/utils/quantization_config.py; QuantizeConfig
in ModelCloud/GPTQModel, gptqmodel/quantization/config.py; QuantizationConfig, QuantizationScheme and QuantizationArgs
in vllm-project/compressed-tensors, quantization/.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

READ = "read"
ANY = "any value"  # how the weights were found, which kernel its own runtime takes: no part of what they are
Values = str | tuple[Any, ...]

_NOTHING: tuple[Any, ...] = (None, False, "", {}, [])

_AWQ: Mapping[str, Values] = {
    **dict.fromkeys(("quant_method", "bits", "group_size", "zero_point", "version"), READ),
    **dict.fromkeys(("modules_to_not_convert", "backend", "do_fuse", "modules_to_fuse", "fuse_max_seq_len"), ANY),
    "sym": _NOTHING,
    "exllama_config": ANY,
    "pack_dtype": (None, "int32"),
}
_GPTQ: Mapping[str, Values] = {
    **dict.fromkeys(("quant_method", "bits", "group_size", "sym", "desc_act"), READ),
    **dict.fromkeys(("checkpoint_format", "format", "dynamic"), READ),
    **dict.fromkeys(
        (
            "damp_percent", "damp_auto_increment", "static_groups", "true_sequential", "model_name_or_path",
            "model_file_base_name", "meta", "quantizer", "dataset", "tokenizer", "model_seqlen",
            "block_name_to_quantize", "module_name_preceding_first_block", "batch_size", "pad_token_id",
            "max_input_length", "cache_block_outputs", "modules_in_block_to_quantize", "use_exllama",
            "disable_exllama", "exllama_config", "use_cuda_fp16", "backend", "mse", "parallel_packing", "lm_head",
            "act_group_aware", "offload_to_disk", "offload_to_disk_path", "v2", "v2_alpha", "hyb_act", "device",
            "pack_impl",
        ),
        ANY,
    ),
    **dict.fromkeys(("rotation", "adapter", "is_marlin_format", "awq_gemm_checkpoint"), _NOTHING),
    "pack_dtype": (None, "int32"),
}  # fmt: skip
_COMPRESSED: Mapping[str, Values] = {
    **dict.fromkeys(("quant_method", "format", "config_groups"), READ),
    **dict.fromkeys(("ignore", "quantization_status", "global_compression_ratio", "version", "run_compressed"), ANY),
    "kv_cache_scheme": _NOTHING,
    "sparsity_config": _NOTHING,  # or {format: dense, ...}
    "transform_config": _NOTHING,  # or {config_groups: {}}
}
_COMPRESSED_GROUP: Mapping[str, Values] = {
    **dict.fromkeys(("weights", "input_activations", "format"), READ),
    **dict.fromkeys(("targets", "output_activations"), ANY),
}
_COMPRESSED_WEIGHTS: Mapping[str, Values] = {
    **dict.fromkeys(("num_bits", "type", "symmetric", "strategy", "group_size", "actorder"), READ),
    **dict.fromkeys(("observer", "observer_kwargs", "scale_dtype", "zp_dtype"), ANY),
    "block_structure": _NOTHING,
    "dynamic": _NOTHING,
}
TABLES: Mapping[str, Mapping[str, Values]] = {
    "awq": _AWQ,
    "gptq": _GPTQ,
    "compressed-tensors": _COMPRESSED,
    "compressed-tensors: config_groups.*": _COMPRESSED_GROUP,
    "compressed-tensors: config_groups.*.weights": _COMPRESSED_WEIGHTS,
}


def unknown_values(method: str, quantization: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """(path, value, what is allowed) of everything that is neither read nor harmless."""
    yield from _outside(TABLES[method], quantization, "")
    if method != "compressed-tensors":
        return
    groups = quantization.get("config_groups")
    for name, group in groups.items() if isinstance(groups, Mapping) else ():
        path = f"config_groups.{name}"
        if not isinstance(group, Mapping):
            yield path, group, "a mapping"
            continue
        yield from _outside(_COMPRESSED_GROUP, group, f"{path}.")
        if isinstance(group.get("weights"), Mapping):
            yield from _outside(_COMPRESSED_WEIGHTS, group["weights"], f"{path}.weights.")
        for key in ("weights", "input_activations"):
            if group.get(key) is not None and not isinstance(group[key], Mapping):
                yield f"{path}.{key}", group[key], "a mapping"


def _outside(table: Mapping[str, Values], values: Mapping[str, Any], path: str) -> Iterator[tuple[str, Any, str]]:
    for key, value in values.items():
        allowed = table.get(key)
        if value is None or allowed in (READ, ANY) or (allowed is not None and _is_harmless(key, value, allowed)):
            continue
        yield path + str(key), value, _describe(key, allowed)


def _is_harmless(key: str, value: Any, allowed: Values) -> bool:
    if any(type(value) is type(each) and value == each for each in allowed):
        return True
    if not isinstance(value, Mapping):
        return False
    if key == "sparsity_config":
        return value.get("format") == "dense"
    return key == "transform_config" and not any(value.values())


def _describe(key: str, allowed: Values | None) -> str:
    if allowed is None:
        return "null, as nothing here knows the key"
    if key == "sparsity_config":
        return "null or {format: dense}"
    values = [each for each in allowed if each not in ("", {}, [])]
    return ", ".join("null" if each is None else str(each).lower() for each in values)
