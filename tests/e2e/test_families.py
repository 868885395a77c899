"""Checkpoints of transformers, recognised and built by one sweep, to verified artifacts that speak.

tests/matrix has the other families.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.conftest import ROOT, Shell

DEMO = ROOT / "builder" / "demo"
SMALL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 3072,
    "max_position_embeddings": 256, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3, "num_key_value_heads": 2, "tie_word_embeddings": True},
    "gpt_neox": {},
}


def write(folder: Path, family: str) -> None:
    """A random float16 checkpoint whose matrices 4 bits hold exactly, so that the limits for trained models apply."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SMALL, **FAMILIES[family]})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.copy_(1 + 0.2 * noise if name.endswith("norm.weight") else 0.1 * noise)
                continue
            groups = (2.5 * noise).round().clamp(-7, 7).view(len(parameter), -1, 32)
            groups[:, :, 0] = 7
            parameter.copy_(groups.view_as(parameter) / 32)
    model.half().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, folder)


def age(folder: Path) -> None:
    """A GPT-NeoX as it was published: a pickle, and a config.json of transformers 4."""
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    config = json.loads((folder / "config.json").read_text())
    rope = config.pop("rope_parameters")
    config |= {"rotary_pct": rope["partial_rotary_factor"], "rotary_emb_base": rope["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(config))


def test_each_is_recognised_built_verified_and_speaks(shell: Shell):
    choices = shell.folder / "conf" / "model"
    choices.mkdir(parents=True)
    for family in FAMILIES:
        write(shell.folder / family, family)
        (choices / f"tiny_{family}.yaml").write_text(f"# tiny\nfamily: auto\nsource: {shell.folder / family}\n")
    age(shell.folder / "gpt_neox")
    sweep = "model=" + ",".join(f"tiny_{family}" for family in FAMILIES)
    document = shell.json("-m", sweep, "quant=q4f16_1")
    assert len(document["recipes"]) == len(FAMILIES)
    for recipe, family in zip(document["recipes"], FAMILIES, strict=True):
        assert recipe["name"] == f"tiny_{family}-q4f16_1-cpu"
        assert {step["status"] for step in recipe["steps"]} <= {"ran", "fresh"}
        chat = json.loads((shell.folder / "dist" / recipe["name"] / "mlc-chat-config.json").read_text())
        assert chat["model_type"] == family
        verified = next(step["facts"] for step in recipe["steps"] if step["name"] == "verify")
        assert verified["exact_error"] < 2e-4
        assert verified["kl"] < 1e-4
    said = shell.run("generate", "The function", "model=tiny_gpt_neox", "--temperature", "0", "--max-tokens", "4")
    assert len(said.stdout) > len("The function")
