"""mlc-chat-config.json, read back from an artifact: by generate, by bench, by verify. Others write such files too."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_build.core.fields import FLAG, OBJECT, TEXT, Kind, check_fields, list_of, whole
from llm_build.formats.checkpoint import read_json

NAME = "mlc-chat-config.json"
REFUSED = "chat_template_refused"  # why the checkpoint's chat template is of no use; there only if it is not
_ID = whole(-1, (1 << 31) - 1)
_IDS = list_of(_ID, "token ids")
_SIZE = whole(1, (1 << 31) - 1)
_TEXTS = list_of(TEXT, "strings")
_FIELDS: Mapping[str, Kind] = {
    **dict.fromkeys(("vocab_size", "active_vocab_size", "context_window_size", "prefill_chunk_size"), _SIZE),
    "eos_token_id": Kind(lambda value: _ID.is_right(value) or _IDS.is_right(value), "a token id, or a list of them"),
    **dict.fromkeys(("model_config", "conv_template"), OBJECT),
    REFUSED: TEXT,
}
_EXPERTS: Mapping[str, Kind] = dict.fromkeys(("num_experts", "num_local_experts", "num_experts_per_tok"), _SIZE)
_CONVERSATION: Mapping[str, Kind] = {
    **dict.fromkeys(("name", "system_template", "system_message", "role_content_sep", "role_empty_sep"), TEXT),
    **dict.fromkeys(("system_prefix_token_ids", "stop_token_ids"), _IDS),
    **dict.fromkeys(("seps", "stop_str"), _TEXTS),
    **dict.fromkeys(("add_role_after_system_message", "render_empty_system_message"), FLAG),
    **dict.fromkeys(("roles", "role_templates"), OBJECT),
}
PLAIN: Mapping[str, Any] = {  # no template: what follows a text
    "name": "plain", "system_template": "{system_message}", "system_message": "", "role_content_sep": "",
    "role_empty_sep": "", "system_prefix_token_ids": [], "stop_token_ids": [], "seps": [""], "stop_str": [],
    "add_role_after_system_message": True, "roles": {"user": "", "assistant": ""},
    "role_templates": {"user": "{user_message}", "assistant": "{assistant_message}"},
}  # fmt: skip


def read_chat_config(path: Path) -> dict[str, Any]:
    """The file as a dict, {} where there is none; "conv_template" and "model_config" are there in any case, with every
    field that is read of them.

    Raises:
        UserError: a field is of another type than it must have.
    """
    config = read_json(path, str(path)) if path.is_file() else {}
    where = f"{path}: "
    check_fields(where, config, _FIELDS)
    sizes, conversation = config.get("model_config") or {}, config.get("conv_template") or {}
    check_fields(f"{where}model_config.", sizes, _EXPERTS)
    check_fields(f"{where}conv_template.", conversation, _CONVERSATION)
    given = {key: value for key, value in conversation.items() if value is not None}
    whole_of: dict[str, Any] = {**PLAIN, **given}
    for name in ("roles", "role_templates"):
        whole_of[name] = {**PLAIN[name], **whole_of[name]}
        check_fields(f"{where}conv_template.{name}.", whole_of[name], dict.fromkeys(whole_of[name], TEXT))
    whole_of["seps"] = whole_of["seps"] or [""]
    return {**config, "conv_template": whole_of, "model_config": sizes}
