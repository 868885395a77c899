"""mlc-chat-config.json: what MLC's runtimes and WebLLM need to know beside the library and the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.core.errors import UserError
from builder.formats.chattemplate import Template, Translation
from builder.formats.checkpoint import TOKENIZER_FILES

VERSION = "0.1.0"
_SAMPLING = {  # the format's defaults; the checkpoint's generation_config.json may change the ones it knows
    "temperature": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "top_p": 1.0,
}
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_TOKEN_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")
_SHARED_TEMPLATE: dict[str, Any] = {
    "system_template": "{system_message}",
    "system_message": "",
    "add_role_after_system_message": True,
    "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"},
    "messages": [],
    "stop_str": [],
    "function_string": "",
    "use_function_calling": False,
}
_CONV_TEMPLATES: dict[str, dict[str, Any]] = {
    "plain": {  # completion: the prompt as it is
        "roles": {"user": "", "assistant": ""},
        "seps": [""],
        "role_content_sep": "",
        "role_empty_sep": "",
    },
    "chatml": {
        "system_template": "<|im_start|>system\n{system_message}<|im_end|>\n",
        "system_message": "You are a helpful assistant.",
        "roles": {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"},
        "seps": ["<|im_end|>\n"],
        "role_content_sep": "\n",
        "role_empty_sep": "\n",
        "stop_str": ["<|im_end|>"],
    },
}


@dataclass(frozen=True, slots=True)
class Texts:
    """The checkpoint's own JSON files, {} where it has none."""

    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokenizer: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]


def chat_config(
    *,
    family: str,
    quantization: str,
    model_config: Mapping[str, Any],
    texts: Texts,
    files: Sequence[str],
    conv_template: str | Translation,
) -> dict[str, Any]:
    """The whole file as a dict. ``files`` are the checkpoint's small files; ``conv_template`` a key of _CONV_TEMPLATES,
    or the checkpoint's own template, translated.

    Token ids that the checkpoint does not give are left out, so the reader's own defaults hold.
    """
    sampling = {key: texts.generation.get(key) for key in _SAMPLING}
    ids = {key: _first(texts.generation.get(key), texts.config.get(key)) for key in _TOKEN_IDS}
    vocab_size = model_config["vocab_size"]
    return {
        "version": VERSION,
        "model_type": family,
        "quantization": quantization,
        "model_config": dict(model_config),
        "vocab_size": vocab_size,
        "active_vocab_size": min(vocab_size, _tokens(texts.tokenizer) or vocab_size),
        "context_window_size": model_config["context_window_size"],
        "sliding_window_size": model_config["sliding_window_size"],
        "prefill_chunk_size": model_config["prefill_chunk_size"],
        "attention_sink_size": model_config["attention_sink_size"],
        "tensor_parallel_shards": model_config["tensor_parallel_shards"],
        "pipeline_parallel_stages": model_config["pipeline_parallel_stages"],
        "max_batch_size": model_config["max_batch_size"],
        **{key: _SAMPLING[key] if value is None else float(value) for key, value in sampling.items()},
        "tokenizer_files": [name for name in TOKENIZER_FILES if name in files],
        "tokenizer_info": tokenizer_info(texts.tokenizer),
        "conv_template": _template(conv_template, texts, ids),
        **{key: value for key, value in ids.items() if value is not None},
        "model_task": "chat",
    }


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _template(name: str | Translation, texts: Texts, ids: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(name, Translation):
        return _translated(name, texts, ids)
    if name not in _CONV_TEMPLATES:
        raise UserError(
            f"model.conv_template: found {name!r}; allowed: {', '.join(_CONV_TEMPLATES)}", "model.conv_template=plain"
        )
    return {
        "name": name,
        **_SHARED_TEMPLATE,
        **_CONV_TEMPLATES[name],
        "system_prefix_token_ids": _prefix_ids(texts, ids["bos_token_id"]),
        "stop_token_ids": _ends(ids),
    }


def _translated(translation: Translation, texts: Texts, ids: Mapping[str, Any]) -> dict[str, Any]:
    """Token ids for what the template begins with and for what ends an answer, where they are tokens."""
    added = {token["content"]: token["id"] for token in texts.tokenizer.get("added_tokens", [])}
    begins = added.get(translation.begins, ids["bos_token_id"])
    stops = [added[text] for text in translation.conv["stop_str"] if text in added]
    return {
        "name": "checkpoint",
        **_SHARED_TEMPLATE,
        **translation.conv,
        "system_prefix_token_ids": [begins] if translation.begins and begins is not None else [],
        "stop_token_ids": list(dict.fromkeys([*_ends(ids), *stops])),
    }


def _ends(ids: Mapping[str, Any]) -> list[int]:
    eos = ids["eos_token_id"]
    return [] if eos is None else list(eos) if isinstance(eos, list) else [eos]


def chat_template(texts: Texts, jinja: str | None) -> Template | None:
    """The checkpoint's own chat template: from its file, or from tokenizer_config.json (where there may be many)."""
    source = jinja or texts.tokenizer_config.get("chat_template")
    if isinstance(source, list):
        source = {entry.get("name"): entry.get("template") for entry in source}.get("default")
    if not isinstance(source, str):
        return None
    named = {key: texts.tokenizer_config.get(key) for key in _SPECIAL_TOKENS}
    tokens = {key: value.get("content") if isinstance(value, Mapping) else value for key, value in named.items()}
    return Template(source, {key: value for key, value in tokens.items() if isinstance(value, str)})


def _prefix_ids(texts: Texts, bos: int | None) -> list[int]:
    """What the tokenizer puts before every text: the runtimes encode without it, so the template must say it."""
    for processor in _parts(texts.tokenizer.get("post_processor"), "processors"):
        if processor.get("type") == "TemplateProcessing":
            first = processor["single"][0] if processor["single"] else {}
            if "SpecialToken" not in first:
                return []
            return list(processor["special_tokens"][first["SpecialToken"]["id"]]["ids"])
    adds_bos = not texts.tokenizer and texts.tokenizer_config.get("add_bos_token") is True
    return [bos] if adds_bos and bos is not None else []


def tokenizer_info(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """How tokens turn back into text, read from tokenizer.json ({}: there is none, so it is taken to be SentencePiece).

    Keys and values are MLC's: ``token_postproc_method`` byte_level | byte_fallback | raw.
    """
    decoders = list(_parts(tokenizer.get("decoder"), "decoders"))
    normalizers = list(_parts(tokenizer.get("normalizer"), "normalizers"))
    kinds = {decoder.get("type") for decoder in decoders}
    if "ByteLevel" in kinds:
        method = "byte_level"
    else:
        method = "byte_fallback" if "ByteFallback" in kinds or not tokenizer else "raw"
    strips = [decoder for decoder in decoders if decoder.get("type") == "Strip" and decoder.get("content") == " "]
    return {
        "token_postproc_method": method,
        "prepend_space_in_encode": any(part.get("type") == "Prepend" for part in normalizers),
        "strip_space_in_decode": any(strip.get("start") == 1 for strip in strips),
    }


def _parts(node: Any, key: str) -> Iterator[Mapping[str, Any]]:
    """A component of tokenizer.json, or the members of its Sequence."""
    if not isinstance(node, Mapping):
        return
    if node.get("type") == "Sequence":
        for part in node.get(key, []):
            yield from _parts(part, key)
    else:
        yield node


def _tokens(tokenizer: Mapping[str, Any]) -> int:
    """One more than the largest token id of tokenizer.json; 0 if it has none."""
    vocab = tokenizer.get("model", {}).get("vocab", {})
    ids = list(vocab.values()) if isinstance(vocab, Mapping) else list(range(len(vocab)))
    return max([*ids, *(token["id"] for token in tokenizer.get("added_tokens", []))], default=-1) + 1
