"""package: put an artifact's files together. Weights and the library are linked, never copied."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_build import architectures
from llm_build.core.step_io import File, InputFiles, Json, Out
from llm_build.formats import chat_template
from llm_build.formats.chat import Chat, chat_of, files_of
from llm_build.formats.chatconfig import Texts, chat_config
from llm_build.formats.checkpoint import TOKENIZER_FILES, read_json
from llm_build.formats.tensorcache import tensor_cache
from llm_build.formats.tokenizer import read_files
from llm_build.quant.methods import gains
from llm_build.steps.ports import group, one


def run(params: Mapping[str, Json], inputs: InputFiles, out: Out) -> None:
    """Outputs are the files of the artifact's folder, by name.

    Args:
        params: {"name", "library" (its file name), "family", "architecture", "scheme", "quantization"
            (the name of the scheme, with what differs from it), "method", "metadata",
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
    texts = _texts(files)
    if params["conv_template"] is None:
        chat = chat_of(texts.tokenizer, files.get(chat_template.FILE))
    else:
        chat = Chat(params["conv_template"])
    for warning in chat.warnings:
        out.warn(warning)
    for name, text in files_of(chat, texts.tokenizer).items():
        out.path(name).write_text(text, "utf-8")
    _write_json(out.path("mlc-chat-config.json"), _chat_config(params, texts, files, chat))
    card = _card(params, cache["metadata"], total_parameters, library.nbytes, chat)
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


def _texts(files: Mapping[str, Path]) -> Texts:
    def text(name: str) -> dict[str, Any]:
        return read_json(files[name], name) if name in files else {}

    return Texts(text("config.json"), text("generation_config.json"), read_files(files))


def _chat_config(
    params: Mapping[str, Json], texts: Texts, files: Mapping[str, Path], chat: Chat
) -> dict[str, Any]:  # fmt: skip
    family = architectures.load(params["family"])
    config = family.from_architecture(params["architecture"])
    return chat_config(
        family=params["family"],
        quantization=params["quantization"],
        model_config=family.model_config(config, params["metadata"]),
        texts=texts,
        files=list(files),
        conv_template=chat.conversation,
        refused=chat.refused,
    )


def _write_json(path: Path, value: Json) -> None:
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", "utf-8")


def _card(
    params: Mapping[str, Json], stored: Mapping[str, Any], total_parameters: int, library_bytes: int, chat: Chat
) -> str:
    metadata = params["metadata"]
    shards = metadata["tensor_parallel_shards"]
    notes = "".join(f"- {note}\n" for note in chat.notes)
    template = f"\nThe chat template of the checkpoint, in chat_template.jinja:\n\n{notes}" if notes else ""
    spread = f"| GPUs | {shards}, each with its share of every layer |\n" if shards > 1 else ""
    method = "" if params["method"] == "imported" else f", integers chosen by {params['method']}"
    method = method if params["scheme"]["kind"] == "group" else ""
    return f"""# {params["name"]}

A {params["family"]} model of {total_parameters:,} parameters, compiled by llm-build.

| | |
|---|---|
| scheme | {params["quantization"]}{method} |
| weights | {stored["ParamBytes"]:,} bytes, {stored["BitsPerParam"]:.2f} bits per parameter |
{spread}| library | `{params["library"]}`, {library_bytes:,} bytes |
| context window | {metadata["context_window_size"]:,} tokens |
| prefill chunk | {metadata["prefill_chunk_size"]:,} tokens |

`build generate "PROMPT"`, with the overrides that built it, streams text from this folder.
The layout is MLC's: `mlc-chat-config.json`, `tensor-cache.json`, `params_shard_*.bin`, the tokenizer and the library.
{template}{_less_loss(params, total_parameters)}
Where every byte came from, with which tools and how it was checked: `build.json`.
"""


def _less_loss(params: Mapping[str, Json], total_parameters: int) -> str:
    """What loses less of a small model, if this scheme cost it much; that is measured after the card is written."""
    scheme, method = params["scheme"], params["method"]
    known = gains.gains(scheme["kind"], scheme["bits"], scheme["dtype"], method)
    if total_parameters >= gains.SMALL or scheme.get("zero_point") or not known:
        return ""
    lines = "".join(
        f"- `{gain.change}`: {f'{gain.bits} bits' if gain.scheme else 'the same bytes'}, "
        f"{gains.format_range(*gain.share)} of the loss\n"
        for gain in known
    )
    return f"""
`build.json` has what the scheme cost this model (`kl` and `top1` of verify). Where `kl` is above
{gains.HIGH_KL:g}, less is lost with (measured on {", ".join(gains.models_with(scheme["bits"], method))}):

{lines}"""
