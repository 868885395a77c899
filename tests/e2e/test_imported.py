"""quant=imported from the command line: built, verified against the checkpoint's own integers, and incremental."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from llm_build.formats import safetensors
from tests.conftest import ROOT, Shell
from tests.weights.quantized_checkpoints import FORMATS, LINEAR
from tests.weights.weights_line import NUMPY, write_tensors

DEMO = ROOT / "builder" / "demo"
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 3072,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def write(folder: Path, family: str, name: str) -> Path:
    """A model of transformers whose linear layers are those of a format."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **SMALL)).half()
    model.save_pretrained(folder)
    given, make = FORMATS[name]
    rng, tensors = np.random.default_rng(0), {}
    for key, value in model.state_dict().items():
        stem, _, last = key.rpartition(".")
        if last == "weight" and stem.rpartition(".")[2] in LINEAR:
            tensors |= make(stem, tuple(value.shape), rng)[0]
        else:
            tensors[key] = ("F16", value.numpy())
    write_tensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": given}))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / file, folder)
    return folder


def facts(document: dict[str, Any]) -> dict[str, float]:
    (recipe,) = document["recipes"]
    return next(step["facts"] for step in recipe["steps"] if step["name"] == "verify")


def words(folder: Path) -> tuple[str, ...]:
    return "model=auto", f"model.source={folder}", "quant=imported", "quant.max_shard_bytes=16384"


def test_awq_of_a_llama(shell: Shell) -> None:
    source = write(shell.folder / "llama", "llama", "awq")
    found = facts(shell.json(*words(source)))
    assert found["exact_error"] < 2e-5
    assert found["kl"] < 1e-8
    built = shell.folder / "dist" / "llama-imported-cpu-max_shard_bytes=16384"
    chat = json.loads((built / "mlc-chat-config.json").read_text())
    assert chat["quantization"] == "q4f16_zp32"
    assert "q_proj" not in (built / "tensor-cache.json").read_text()
    assert shell.ran(*words(source)) == set()
    change(source / "model.safetensors", "model.layers.1.mlp.down_proj.scales")
    ran = shell.ran(*words(source))
    assert len([name for name in ran if name.startswith("quantize[")]) == 1
    assert "lower" not in ran
    assert "convert" not in ran
    again = shell.run("build", *words(source)[:2], "quant=q4f16_1", code=2)
    assert "quantized already (awq)" in again.stderr
    assert "quant=imported" in again.stderr


def test_gptq_of_a_qwen2_which_has_biases(shell: Shell) -> None:
    source = write(shell.folder / "qwen2", "qwen2", "gptq_sym")
    found = facts(shell.json(*words(source)))
    assert found["exact_error"] < 2e-5
    assert found["kl"] < 1e-8


def change(file: Path, name: str) -> None:
    """One more unit in the last place of a tensor's first value."""
    tensor = next(tensor for tensor in safetensors.read_header(file, file.name) if tensor.name == name)
    held = np.memmap(file, NUMPY[tensor.dtype], "r+", tensor.offset, tensor.shape)
    held.reshape(-1)[0] = np.nextafter(held.reshape(-1)[0], np.float16(1))
    held.flush()
