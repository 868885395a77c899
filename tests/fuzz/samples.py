"""Good files of every kind, made once for a run. A case works on a copy of some of them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tests.weights import quantized_checkpoints
from tests.weights.test_fields import CONFIGS
from tests.weights.test_fields_of_files import TOKEN, TOKENIZER_CONFIG
from tests.weights.tokenizers_of_kinds import byte_fallback, byte_level
from tests.weights.weights_line import (
    ARCHITECTURE,
    group_scheme,
    hf_config,
    run_package,
    run_weights,
    source_tensors,
    write_checkpoint,
)

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] | trim }}<a>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
TEMPLATES = [
    TEMPLATE,
    "{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}{% set messages = messages[1:] %}"
    "{% else %}{% set system = '' %}{% endif %}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 "
    "== 0) %}{{ raise_exception('roles') }}{% endif %}{{ '[INST] ' + (system if loop.first else '') + m['content'] + "
    "' [/INST]' if m['role'] == 'user' else m['content'] + eos_token }}{% endfor %}",
    "{%- set ns = namespace(found=false) -%}{%- for m in messages -%}{%- set ns.found = true -%}<s>{{ m.role }}\n"
    "{{ m.content }}</s>\n{%- endfor -%}{{ strftime_now('%d %b %Y') }}{% if add_generation_prompt %}{% generation %}"
    "{% endgeneration %}{% endif %}",
]
GENERATION = {
    "eos_token_id": [1, 2], "bos_token_id": 0, "pad_token_id": 0, "temperature": 0.7, "top_p": 0.9,
    "repetition_penalty": 1.0, "do_sample": True, "transformers_version": "5.0.0", "max_length": 20,
}  # fmt: skip
SPECIAL = {"eos_token": {**TOKEN, "content": "</s>"}, "additional_special_tokens": ["<b>"], "bos_token": "<s>"}
QUANTIZED = ("awq", "gptq_sym", "gptq_8", "packed_group", "packed_zeros", "int8", "w8a8", "float8")
FAMILIES = CONFIGS


PLANNED = ("model=demo", "quant=q4f16_1")


def root_of(case: Path) -> Path:
    """The samples of the run that a case belongs to: <run>/worker-<n>/case, <run>/samples."""
    return case.parent.parent / "samples"


def make(root: Path) -> None:
    """All of them, in seconds."""
    root.mkdir(parents=True)
    _checkpoints(root)
    _bins(root)
    _toy(root)
    _artifact(root)
    _planned(root)


def _checkpoints(root: Path) -> None:
    tensors = source_tensors()
    for name, shards in (("llama", 1), ("sharded", 3)):
        write_checkpoint(root / name, tensors, shards, vocab_size=96)
        put_small_files(root / name)
    for name in QUANTIZED:
        quantized_checkpoints.write(root / name, name)


def put_small_files(folder: Path) -> None:
    """The tokenizer's files, generation_config.json and a chat template."""
    byte_level(96 + 256).save(str(folder / "tokenizer.json"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocab, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    config = {**TOKENIZER_CONFIG, "chat_template": TEMPLATE}
    for name, value in (
        ("tokenizer_config", config), ("special_tokens_map", SPECIAL), ("added_tokens", {"<x>": 400}),
        ("generation_config", GENERATION), ("vocab", vocab),
    ):  # fmt: skip
        (folder / f"{name}.json").write_text(json.dumps(value))
    words = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *words]) + "\n")
    (folder / "chat_template.jinja").write_text(TEMPLATE)


def _bins(root: Path) -> None:
    import torch

    state = {name: torch.from_numpy(np.array(array)) for name, (_, array) in source_tensors().items()}
    state["tied"] = state["lm_head.weight"]
    (root / "bin").mkdir()
    (root / "bin" / "config.json").write_text(json.dumps(hf_config()))
    torch.save(state, root / "bin" / "pytorch_model.bin")
    torch.save(dict(list(state.items())[:4]), root / "bin" / "old.bin", _use_new_zipfile_serialization=False)
    byte_fallback().save(str(root / "bin" / "tokenizer.json"))


def _toy(root: Path) -> None:
    """A store and a shared store with the results of a toy recipe."""
    from tests.core.toy import write_source
    from tests.remote.machine import Machine

    (root / "toy").mkdir()
    source = write_source(root / "toy" / "source.bin")
    machine = Machine(root / "toy" / "store", source, f"file://{root}/toy/remote")
    machine.build()
    machine.store.stop()


def _artifact(root: Path) -> None:
    """A folder as a build leaves it, but with a library that is none; and its lock."""
    from llm_build.core.digest import digest_of_file
    from llm_build.core.record import Output, Record
    from llm_build.core.step import Step
    from llm_build.provenance.diff.sides import lock_of_folder
    from llm_build.provenance.lock_file import text_of
    from llm_build.provenance.statement import statement

    scheme = group_scheme("q4f16_1")
    work, folder = root / "work", root / "dist"
    built = run_weights(root / "llama", work, ARCHITECTURE, asdict(scheme))
    files = run_package(built, work, ARCHITECTURE, asdict(scheme)).outputs()
    outputs = {}
    for name, file in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file.path, target)
        outputs[name] = Output(digest_of_file(target), target.stat().st_size)
    fetched = {name: Output(file.digest or digest_of_file(file.path), file.nbytes) for name, file in
               built.fetch.outputs().items()}  # fmt: skip
    record = Record("ab" * 32, {"tools": {"numpy": "2.0"}, "watch": {}}, outputs, facts={"bits_per_parameter": 4.5})
    first = Record("cd" * 32, {"tools": {}}, fetched, facts=built.fetch.facts)
    verified = Record(
        "ef" * 32, {"tools": {}}, {}, facts={"kl": 0.1, "perplexity": 2.0, "perplexity_original": 2.1, "top1": 1}
    )
    made = [(Step("fetch", "x:fetch", {}, {}, watch={"a": "b"}), first), (Step("package", "x:package", {}, {}), record),
            (Step("verify", "x:verify", {}, {}), verified)]  # fmt: skip
    sha256s = dict.fromkeys((output.digest for output in outputs.values()), "00" * 32)
    document = statement(_recipe(), made, outputs, sha256s.__getitem__)
    _with_true_sums(document, folder)
    (folder / "build.json").write_text(json.dumps(document, indent=1, sort_keys=True))
    (root / "a.lock.yaml").write_text(text_of(lock_of_folder(folder, document), "build lock"))
    _share(root, record)


def _share(root: Path, record: Any) -> None:
    """The artifact in a shared store, where `build pull` finds it."""
    from llm_build.remote.location import Location
    from llm_build.remote.store import open_shared

    store = open_shared(root / "shared-from", Location(f"file://{root}/shared", "write"))
    store.start()
    copies = {}
    for name in record.outputs:
        copies[name] = store.scratch() / "copy"
        shutil.copyfile(root / "dist" / name, copies[name])
    store.commit(record._replace(outputs=store.ingest(copies)))
    store.drain(lambda event: None)
    store.stop()


def _with_true_sums(document: Any, folder: Path) -> None:
    from llm_build.core.digest import sha256_of_file

    for subject in document["subject"]:
        subject["digest"]["sha256"] = sha256_of_file(folder / subject["name"])


def _recipe() -> dict[str, Any]:
    choices = {"model": "auto", "quant": "q4f16_1", "target": "cpu", "package": "mlc", "verify": "default"}
    return {
        "name": "tiny", "label": "tiny-q4f16_1-cpu", "choices": choices, "architecture": ARCHITECTURE,
        "metadata": {"context_window_size": 64}, "model": {"source": "folder", "architecture": {}, "family": "llama"},
        "package": {"kind": "mlc"}, "quant": {"name": "q4f16_1", "bits": 4, "method": "mse", "budget": None,
                                              "rules": []},
        "target": {"kind": "cpu", "triple": "x86_64-linux-gnu", "features": []}, "verify": {"tokens": 512}, "pins": {},
    }  # fmt: skip


def _planned(root: Path) -> None:
    """A store with what a plan remembers, beside the results of the toy recipe."""
    from llm_build.app.merge import request_of
    from llm_build.app.options import BuildOptions

    shutil.copytree(root / "toy" / "store", root / "planned")
    kept = os.environ.get("LLM_BUILD_STORE")
    os.environ["LLM_BUILD_STORE"] = str(root / "planned")
    try:
        request_of(BuildOptions(overrides=PLANNED))
    finally:
        os.environ.pop("LLM_BUILD_STORE")
        if kept is not None:
            os.environ["LLM_BUILD_STORE"] = kept
