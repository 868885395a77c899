"""The memory plan against what a run really takes: the process's own peak, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from llm_build import architectures
from llm_build.config.choices import choices_of, find_folders
from llm_build.config.schema import Metadata, Target
from llm_build.config.strict import parse
from llm_build.planner.feasibility import device_memory as memory
from llm_build.quant import layout
from llm_build.steps import lower
from tests.conftest import ROOT
from tests.tvm import tiny

OWN_BYTES = 6_000_000  # of a loaded library: its code and constants, threads, what NumPy and Python add
MIN_SHARE, MAX_SHARE = 1.0, 1.1  # of what is really taken
BASE = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048, "vocab_size": 2048, "tie_word_embeddings": False}
MODELS: dict[str, tuple[dict[str, Any], Metadata]] = {  # what most of the memory goes to
    "cache": (
        {**BASE, "model_type": "llama", "hidden_size": 256, "intermediate_size": 704, "num_attention_heads": 4,
         "num_hidden_layers": 12},
        Metadata(1024, -1, 256, 0, 4, 1),
    ),
    "weights": (
        {**BASE, "model_type": "qwen2", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
         "num_key_value_heads": 4, "num_hidden_layers": 5, "use_sliding_window": False, "hidden_act": "silu"},
        Metadata(256, -1, 128, 0, 1, 1),
    ),
    "activations": (
        {**BASE, "model_type": "gpt_neox", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
         "num_hidden_layers": 2, "hidden_act": "gelu", "layer_norm_eps": 1e-5},
        Metadata(1024, -1, 800, 0, 1, 1),
    ),
}  # fmt: skip
RUN = """
import json, sys
from pathlib import Path
import numpy as np
from llm_build.runtime.engine import Engine
from llm_build.targets.tvm_import import import_tvm
import_tvm(runtime_only=True)
from tvm.runtime.vm import VirtualMachine
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
before = status("VmRSS")
engine = Engine.from_folder(Path(sys.argv[1]))
tokens = [token % engine.vocab_size for token in range(engine.sequences * engine.context)]
lengths = [*range(1, 40), 64, 128, 256, 512]
for length in (length for length in lengths if length <= engine.chunk):  # of all prompts, none may leave memory behind
    sequence = engine.add_sequence()
    engine.prefill(sequence, tokens[:length])
    engine.remove_sequence(sequence)
sequences = [engine.add_sequence() for _ in range(engine.sequences)]
for index, sequence in enumerate(sequences):
    engine.prefill(sequence, tokens[index * engine.context :][: engine.context - 4])
for _ in range(2):
    engine.decode(sequences[0], 1)
    engine.decode_batch(sequences, [1] * len(sequences))
print(json.dumps([before, status("VmHWM")]))
"""


def make_artifact(folder: Path, config_json: dict[str, Any], sizes: Metadata) -> memory.Shapes:
    """A library, and weights that are all zero: how much they are is all that counts."""
    family, found = architectures.load(config_json["model_type"]), tiny.SCHEMES["q4f16_1"]
    config = family.from_hf(config_json)
    params = tiny.lower_params(tiny.BASE, found)
    fields = {"family": config_json["model_type"], "architecture": asdict(config), "metadata": asdict(sizes)}
    lower.run(params | fields, {}, tiny.FolderOut(folder))
    records, offset = [], 0
    for piece in (
        piece for parameter in family.parameters(config) for piece in layout.stored_tensors(parameter, found)
    ):
        where = {"name": piece.name, "format": "raw", "nbytes": piece.nbytes, "byteOffset": offset}
        records.append({**where, "shape": list(piece.shape), "dtype": piece.dtype})
        offset += -(-piece.nbytes // 64) * 64
    shard = {"dataPath": "params_shard_0.bin", "format": "raw-shard", "nbytes": offset, "records": records}
    with (folder / "params_shard_0.bin").open("wb") as file:
        file.truncate(offset)
    (folder / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": [shard]}))
    return memory.model_shapes(family.parameters(config), asdict(config), found, Target())


@pytest.mark.parametrize("name", MODELS)
def test_the_estimate_is_what_a_run_takes(name: str, tmp_path: Path):
    config_json, sizes = MODELS[name]
    shapes = make_artifact(tmp_path, config_json, sizes)
    planned = json.loads((tmp_path / "metadata.json").read_text())["memory_usage"]["prefill"]
    last_row = 2 * 4 * config_json["hidden_size"]
    assert sizes.prefill_chunk_size * sum(shapes.widths) == planned - last_row

    command = [sys.executable, "-c", RUN, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, peak = json.loads(done.stdout)
    found = memory.memory_needed(shapes, sizes)
    share = (found.total + OWN_BYTES) / (peak - before)
    print(f"{name}: {found}, really {peak - before}, estimated {share:.3f} of it, before {before}")
    largest = max(("cache", "weights", "activations"), key=lambda part: getattr(found, part))
    assert largest == name
    assert MIN_SHARE <= share <= MAX_SHARE

    file = choices_of("target", find_folders())["cpu"]
    said = parse(Target, yaml.safe_load(file.read_text()), "target").runtime_bytes
    assert before + OWN_BYTES / 2 <= said <= MAX_SHARE * (before + OWN_BYTES)
