"""package: put an artifact's files together. Weights and the library are linked, never copied."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from builder import architectures
from builder.core.step_io import File, InputFiles, Json, Out
from builder.formats.chatconfig import Texts, chat_config, chat_template
from builder.formats.chattemplate import CannotExpress, Translation, translate
from builder.formats.checkpoint import TOKENIZER_FILES, read_json
from builder.formats.tensorcache import tensor_cache
from builder.steps.ports import group, one


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Outputs are the files of the artifact's folder, by name.

    Args:
        params: {"name", "library" (its file name), "family", "architecture", "scheme", "metadata",
            "conv_template" (a name, or null for plain text)}.
        inputs: {"shards": {"<i>/params_shard_<i>.bin", "<i>/records.json"}, "library", "files": {"file/<name>"},
            "parameters": parameters.json}.
    """
    library, parameters = one(inputs["library"]), one(inputs["parameters"])
    files = {name.removeprefix("file/"): file.path for name, file in group(inputs["files"]).items()}
    total_parameters = json.loads(parameters.path.read_bytes())["total_parameters"]
    cache = tensor_cache(_link_shards(group(inputs["shards"]), out), total_parameters)
    for name in ("tensor-cache.json", "ndarray-cache.json"):
        _write_json(out.path(name), cache)
    out.link(params["library"], library)
    for name in TOKENIZER_FILES:
        if name in files:
            out.link(name, group(inputs["files"])[f"file/{name}"])
    _write_json(out.path("mlc-chat-config.json"), _chat_config(params, files, out))
    card = _card(params, cache["metadata"], total_parameters, library.nbytes)
    out.path("README.md").write_text(card, "utf-8")
    out.fact("weights_bytes", cache["metadata"]["ParamBytes"])
    out.fact("bits_per_parameter", round(cache["metadata"]["BitsPerParam"], 4))


def _link_shards(files: Mapping[str, File], out: Out) -> list[Json]:
    """Link params_shard_<i>.bin, and those of each rank, in numeric order and return their tensor-cache entries."""
    records = [json.loads(file.path.read_bytes()) for name, file in files.items() if name.endswith("/records.json")]
    shards = [shard for entry in records for shard in entry.get("shards", [entry])]  # of several ranks, several files
    shards.sort(key=lambda shard: [int(number) for number in re.findall(r"\d+", shard["dataPath"])])
    by_name = {name.rsplit("/", 1)[-1]: file for name, file in files.items()}
    for shard in shards:
        out.link(shard["dataPath"], by_name[shard["dataPath"]])
    return shards


def _chat_config(params: Mapping[str, Json], files: Mapping[str, Path], out: Out) -> dict[str, Any]:
    def text(name: str) -> dict[str, Any]:
        return read_json(files[name], name) if name in files else {}

    texts = Texts(
        text("config.json"), text("generation_config.json"), text("tokenizer.json"), text("tokenizer_config.json")
    )
    family = architectures.load(params["family"])
    config = family.from_architecture(params["architecture"])
    return chat_config(
        family=params["family"],
        quantization=params["scheme"]["name"],
        model_config=family.model_config(config, params["metadata"]),
        texts=texts,
        files=list(files),
        conv_template=params["conv_template"] or _own_template(texts, files, out),
    )


def _own_template(texts: Texts, files: Mapping[str, Path], out: Out) -> str | Translation:
    """The checkpoint's chat template in the artifact's format; plain text where it has none or cannot be expressed."""
    jinja = files["chat_template.jinja"].read_text("utf-8") if "chat_template.jinja" in files else None
    template = chat_template(texts, jinja)
    if template is None:
        return "plain"
    try:
        translation = translate(template)
    except CannotExpress as error:
        out.warn(
            f"the checkpoint's chat template has no counterpart in MLC's format ({error}); it completes plain text"
        )
        return "plain"
    for note in translation.notes:
        out.warn(f"chat template: {note}")
    return translation


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


def _card(params: Mapping[str, Json], stored: Mapping[str, Any], total_parameters: int, library_bytes: int) -> str:
    metadata = params["metadata"]
    shards = metadata["tensor_parallel_shards"]
    spread = f"| GPUs | {shards}, each with its share of every layer |\n" if shards > 1 else ""
    return f"""# {params["name"]}

A {params["family"]} model of {total_parameters:,} parameters, compiled by llm-build.

| | |
|---|---|
| scheme | {params["scheme"]["name"]} |
| weights | {stored["ParamBytes"]:,} bytes, {stored["BitsPerParam"]:.2f} bits per parameter |
{spread}| library | `{params["library"]}`, {library_bytes:,} bytes |
| context window | {metadata["context_window_size"]:,} tokens |
| prefill chunk | {metadata["prefill_chunk_size"]:,} tokens |

`build generate "PROMPT"`, with the overrides that built it, streams text from this folder.
The layout is MLC's: `mlc-chat-config.json`, `tensor-cache.json`, `params_shard_*.bin`, the tokenizer and the library.

Where every byte came from, with which tools and how it was checked: `build.json`.
"""
