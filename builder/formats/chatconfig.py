"""mlc-chat-config.json: what MLC's runtimes and WebLLM need to know beside the library and the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_build.core.errors import UserError
from llm_build.formats.artifact_config import REFUSED
from llm_build.formats.checkpoint import TOKENIZER_FILES
from llm_build.formats.conversation_template import ROLE_TEMPLATES, Translation, split_tokens
from llm_build.formats.generation_config import GenerationConfig, read_generation_config
from llm_build.formats.tokenizer import TokenizerFiles, named_tokens

VERSION = "0.1.0"
_SHARED_TEMPLATE: dict[str, Any] = {
    "system_template": "{system_message}",
    "system_message": "",
    "add_role_after_system_message": True,
    "role_templates": ROLE_TEMPLATES,
    "messages": [],
    "stop_str": [],
    "function_string": "",
    "use_function_calling": False,
}
CONV_TEMPLATES: dict[str, dict[str, Any]] = {
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
    """The checkpoint's own JSON files, {} where it has none; ``tokenizer.tokenizer`` is the one that is shipped."""

    config: Mapping[str, Any]
    generation: Mapping[str, Any]
    tokenizer: TokenizerFiles


def chat_config(
    *,
    family: str,
    quantization: str,
    model_config: Mapping[str, Any],
    texts: Texts,
    files: Sequence[str],
    conv_template: str | Translation,
    refused: str = "",
) -> dict[str, Any]:
    """The whole file as a dict. ``files`` are the checkpoint's small files; ``conv_template`` a key of CONV_TEMPLATES,
    or the checkpoint's own template, translated. ``refused``: why the checkpoint's template is of no use; generate says
    so, runtimes do not know the key.

    Token ids that the checkpoint does not give are left out, so the reader's own defaults hold.
    """
    own, ends = read_generation_config(texts.generation, texts.config), _stop_ids(texts)
    ids = {"pad_token_id": own.pad, "bos_token_id": own.bos, "eos_token_id": _one_or_all(ends)}
    tokenizer = texts.tokenizer.tokenizer
    vocab_size = model_config["vocab_size"]
    return {
        "version": VERSION,
        "model_type": family,
        "quantization": quantization,
        "model_config": dict(model_config),
        "vocab_size": vocab_size,
        "active_vocab_size": min(vocab_size, _tokens(tokenizer) or vocab_size),
        "context_window_size": model_config["context_window_size"],
        "sliding_window_size": model_config["sliding_window_size"],
        "prefill_chunk_size": model_config["prefill_chunk_size"],
        "attention_sink_size": model_config["attention_sink_size"],
        "tensor_parallel_shards": model_config["tensor_parallel_shards"],
        "pipeline_parallel_stages": model_config["pipeline_parallel_stages"],
        "max_batch_size": model_config["max_batch_size"],
        **own.sampling,
        "tokenizer_files": [name for name in TOKENIZER_FILES if name in files],
        "tokenizer_info": tokenizer_info(tokenizer),
        "conv_template": _template(conv_template, texts, own, ends),
        **{key: value for key, value in ids.items() if value is not None},
        **({REFUSED: refused} if refused else {}),
        "model_task": "chat",
    }


def _stop_ids(texts: Texts) -> list[int]:
    """Every token that ends a text: those of generation_config.json and config.json, and the tokenizer's own."""
    own = read_generation_config(texts.generation, texts.config)
    named = named_tokens(texts.tokenizer).get("eos_token", "")
    eos = _token_ids(texts.tokenizer.tokenizer).get(named)
    return list(dict.fromkeys([*own.eos, *([] if eos is None else [eos])]))


def _one_or_all(ids: Sequence[int]) -> int | list[int] | None:
    """As generation_config.json writes ids."""
    return None if not ids else ids[0] if len(ids) == 1 else list(ids)


def _template(
    name: str | Translation, texts: Texts, own: GenerationConfig, ends: Sequence[int]
) -> dict[str, Any]:  # fmt: skip
    if isinstance(name, Translation):
        return _translated(name, texts, own, ends)
    if name not in CONV_TEMPLATES:
        raise UserError(
            f"model.conv_template: found {name!r}; allowed: {', '.join(CONV_TEMPLATES)}", "model.conv_template=plain"
        )
    return {
        "name": name,
        **_SHARED_TEMPLATE,
        **CONV_TEMPLATES[name],
        "system_prefix_token_ids": _prefix_ids(texts, own.bos),
        "stop_token_ids": list(ends),
    }


def _translated(
    translation: Translation, texts: Texts, own: GenerationConfig, ends: Sequence[int]
) -> dict[str, Any]:  # fmt: skip
    """Token ids for what the template begins with and for what ends an answer, where they are tokens."""
    added = {token["content"]: token["id"] for token in texts.tokenizer.tokenizer.get("added_tokens") or []}
    begins = [added.get(token, own.bos) for token in split_tokens(translation.begins, added)]
    stops = [added[text] for text in translation.conv["stop_str"] if text in added]
    return {
        "name": "checkpoint",
        **_SHARED_TEMPLATE,
        **translation.conv,
        "system_prefix_token_ids": [id_ for id_ in begins if id_ is not None],
        "stop_token_ids": list(dict.fromkeys([*ends, *stops])),
    }


def _prefix_ids(texts: Texts, bos: int | None) -> list[int]:
    """What the tokenizer puts before every text: the runtimes encode without it, so the template must say it."""
    for processor in _parts(texts.tokenizer.tokenizer.get("post_processor"), "processors"):
        if processor.get("type") == "TemplateProcessing":
            first = (processor.get("single") or [{}])[0]
            if not first.get("SpecialToken"):
                return []
            return list(processor["special_tokens"][first["SpecialToken"]["id"]]["ids"])
    adds_bos = not texts.tokenizer.tokenizer and texts.tokenizer.config.get("add_bos_token") is True
    return [bos] if adds_bos and bos is not None else []


def tokenizer_info(tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """How tokens turn back into text, read from tokenizer.json ({}: there is none, so it is taken to be SentencePiece).

    Keys and values are MLC's: ``token_postproc_method`` byte_level | byte_fallback | raw.
    """
    decoders = list(_parts(tokenizer.get("decoder"), "decoders"))
    normalizers = list(_parts(tokenizer.get("normalizer"), "normalizers"))
    kinds = {decoder.get("type") for decoder in decoders}
    if not decoders:  # then what a text is cut with says how its tokens are written
        kinds = {part.get("type") for part in _parts(tokenizer.get("pre_tokenizer"), "pretokenizers")}
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


def _token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """{token: id} of tokenizer.json; added tokens go before words of the vocabulary."""
    vocab = tokenizer.get("model", {}).get("vocab", {})
    words = vocab if isinstance(vocab, Mapping) else {word[0]: number for number, word in enumerate(vocab)}
    return {**words, **{token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}}


def _tokens(tokenizer: Mapping[str, Any]) -> int:
    """One more than the largest token id of tokenizer.json; 0 if it has none."""
    return max(_token_ids(tokenizer).values(), default=-1) + 1
