"""Chat templates of every kind: in MLC's format, as Jinja, or refused by name; with the right prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_build.core.errors import UserError
from llm_build.formats.chatconfig import chat_config
from llm_build.runtime.chat import chat_prompt, has_chat
from tests.chat_templates import (
    CONVERSATIONS,
    JINJA,
    NATIVE,
    PARTLY,
    REFUSED,
    WRONG,
    Outcome,
    examine,
    examine_folder,
    one_day,
    runtime_writes,
    table,
    write_artifact,
)

ASKED, SYSTEM = "Why is it so?", "Answer in French."
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": None, "unk_token": "<unk>"}


@dataclass(frozen=True, slots=True)
class Case:
    """``asked``, ``with_system``: the prompt of one question, without and with a system message; None: refused."""

    source: Any
    kind: str
    asked: str | None = None
    with_system: str | None = None
    words: str = ""


def said(role: str, before: str = "", after: str = "", content: str = "m.content") -> str:
    return f"{{% if m.role == '{role}' %}}{before}{{{{ {content} }}}}{after}{{% endif %}}"


def talk(*branches: str, prompt: str = "") -> str:
    end = f"{{% if add_generation_prompt %}}{prompt}{{% endif %}}" if prompt else ""
    return "{% for m in messages %}" + "".join(branches) + "{% endfor %}" + end


TURNS = (said("user", "<|user|>", "<|end|>"), said("assistant", "<|bot|>", "<|end|>"))
FIRST_SYSTEM = (
    "{% if messages[0].role == 'system' %}{% set told = messages[0].content %}{% set messages = messages[1:] %}"
    "{% else %}{% set told = DEFAULT %}{% endif %}"
)
IN_THE_QUESTION = (
    "{% for m in messages %}{% if m.role == 'user' %}{% if loop.first and told %}"
    "{% set text = '<<SYS>>' + told + '<</SYS>>' + m.content %}{% else %}{% set text = m.content %}{% endif %}"
    "{{ bos_token + '[INST] ' + text + ' [/INST]' }}{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}"
    "{% endfor %}"
)
CASES = {
    "a role for everyone": Case(
        "{{ bos_token }}" + talk(*TURNS, said("system", "<|sys|>", "<|end|>"), prompt="<|bot|>"),
        NATIVE,
        f"<s><|user|>{ASKED}<|end|><|bot|>",
        f"<s><|sys|>{SYSTEM}<|end|><|user|>{ASKED}<|end|><|bot|>",
    ),
    "a default system message": Case(
        "{% if messages[0].role != 'system' %}<|sys|>Be kind.<|end|>{% endif %}"
        + talk(*TURNS, said("system", "<|sys|>", "<|end|>"), prompt="<|bot|>"),
        NATIVE,
        f"<|sys|>Be kind.<|end|><|user|>{ASKED}<|end|><|bot|>",
        f"<|sys|>{SYSTEM}<|end|><|user|>{ASKED}<|end|><|bot|>",
    ),
    "a system message in the first question": Case(
        FIRST_SYSTEM.replace("DEFAULT", "''") + IN_THE_QUESTION,
        NATIVE,
        f"<s>[INST] {ASKED} [/INST]",
        f"<s>[INST] <<SYS>>{SYSTEM}<</SYS>>{ASKED} [/INST]",
    ),
    "a default one in the first question": Case(
        FIRST_SYSTEM.replace("DEFAULT", "'Be kind.'") + IN_THE_QUESTION,
        NATIVE,
        f"<s>[INST] <<SYS>>Be kind.<</SYS>>{ASKED} [/INST]",
        f"<s>[INST] <<SYS>>{SYSTEM}<</SYS>>{ASKED} [/INST]",
    ),
    "two tokens at the beginning": Case(
        "[MASK]<sop>" + talk("<|{{ m.role }}|>\n{{ m.content }}", prompt="<|assistant|>"),
        NATIVE,
        f"[MASK]<sop><|user|>\n{ASKED}<|assistant|>",
        f"[MASK]<sop><|system|>\n{SYSTEM}<|user|>\n{ASKED}<|assistant|>",
    ),
    "a system message without a mark, the answer's header always there": Case(
        "{{ bos_token }}{% if messages[0].role != 'system' %}You write programs.\n{% endif %}"
        + talk(said("system"), said("user", "### Ask:\n", "\n"), said("assistant", "### Say:\n", "\n<|EOT|>\n"))
        + "### Say:\n\n",
        NATIVE,
        f"<s>You write programs.\n### Ask:\n{ASKED}\n### Say:\n",
        f"<s>{SYSTEM}### Ask:\n{ASKED}\n### Say:\n",
    ),
    "fixed words first, no system message, the answer's header always there": Case(
        "{{ bos_token }}You write programs.\n\n"
        + talk(
            "{% if m.role == 'system' %}{{ raise_exception('no system messages here') }}{% endif %}",
            said("user", "@@ Ask\n", "\n\n"),
            said("assistant", "@@ Say\n", "{{ eos_token }}\n\n"),
        )
        + "@@ Say\n\n",
        NATIVE,
        f"<s>You write programs.\n\n@@ Ask\n{ASKED}\n\n@@ Say\n",
        None,
        "no system messages here",
    ),
    "another break before later questions": Case(
        FIRST_SYSTEM.replace("DEFAULT", "'A chat.'")
        + "{{ told }}"
        + talk(
            "{% if m.role == 'user' %}{{ (' ' if loop.first else '\n') + 'ASK: ' + m.content }}{% endif %}",
            said("assistant", " SAY: ", "{{ eos_token }}"),
            prompt=" SAY:",
        ),
        NATIVE,
        f"A chat. ASK: {ASKED} SAY:",
        f"{SYSTEM} ASK: {ASKED} SAY:",
    ),
    "the system speaks as the model": Case(
        "{{ eos_token + bos_token }}"
        + talk("{{ ('Ask: ' if m.role == 'user' else 'Say: ') + m.content + bos_token }}")
        + "Say:",
        NATIVE,
        f"</s><s>Ask: {ASKED}<s>Say:",
        f"</s><s>Say: {SYSTEM}<s>Ask: {ASKED}<s>Say:",
    ),
    "system messages are left out": Case(
        "{{ eos_token }}" + talk(*TURNS, prompt="<|bot|>"),
        NATIVE,
        f"</s><|user|>{ASKED}<|end|><|bot|>",
        f"</s><|user|>{ASKED}<|end|><|bot|>",
        "leaves a system message out",
    ),
    "a system message in the last question": Case(
        FIRST_SYSTEM.replace("DEFAULT", "''")
        + "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        + "{{ '[INST]' + (told + '\n\n' if loop.last and told else '') + m.content + '[/INST]' }}"
        + "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}",
        PARTLY,
        f"<s>[INST]{ASKED}[/INST]",
        f"<s>[INST]{SYSTEM}\n\n{ASKED}[/INST]",
        "two turns: written in another way",
    ),
    "spaces are trimmed": Case(
        talk("{{ '<|' + m.role + '|>' + m.content | trim + eos_token }}", prompt="<|assistant|>"),
        NATIVE,
        f"<|user|>{ASKED}</s><|assistant|>",
        f"<|system|>{SYSTEM}</s><|user|>{ASKED}</s><|assistant|>",
    ),
    "contents are lists of parts": Case(
        talk(
            "{{ '<|' + m.role + '|>' }}{% for part in m.content %}{% if part.type == 'text' %}"
            "{{ part.text }}{% endif %}{% endfor %}{{ eos_token }}",
            prompt="<|assistant|>",
        ),
        NATIVE,
        f"<|user|>{ASKED}</s><|assistant|>",
        f"<|system|>{SYSTEM}</s><|user|>{ASKED}</s><|assistant|>",
    ),
    "the day": Case(
        "<|sys|>It is {{ strftime_now('%d %b %Y') }}. "
        + "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}<|end|>"
        + talk(*TURNS, prompt="<|bot|>"),
        NATIVE,
        f"<|sys|>It is 26 Jul 2024. <|end|><|user|>{ASKED}<|end|><|bot|>",
        f"<|sys|>It is 26 Jul 2024. {SYSTEM}<|end|><|user|>{ASKED}<|end|><|bot|>",
        "always 2024-07-26",
    ),
    "marks for training": Case(
        talk(
            said("system", "<|sys|>", "<|end|>"),
            TURNS[0],
            "{% if m.role == 'assistant' %}<|bot|>{% generation %}{{ m.content + '<|end|>' }}"
            "{% endgeneration %}{% endif %}",
            prompt="<|bot|>",
        ),
        NATIVE,
        f"<|user|>{ASKED}<|end|><|bot|>",
        f"<|sys|>{SYSTEM}<|end|><|user|>{ASKED}<|end|><|bot|>",
    ),
    "several templates by name": Case(
        {"tool_use": "{{ tools | tojson }}", "default": talk(*TURNS, prompt="<|bot|>")},
        NATIVE,
        f"<|user|>{ASKED}<|end|><|bot|>",
        f"<|user|>{ASKED}<|end|><|bot|>",
    ),
    "the first question bare": Case(
        talk(
            "{% if m.role == 'user' %}{{ ('[INST] ' if loop.index0 > 1 else '') + m.content + ' [/INST]' }}{% endif %}",
            said("system", "[INST] <<SYS>>", "<</SYS>>"),
            said("assistant", " ", "{{ eos_token }}"),
        ),
        JINJA,
        f"{ASKED} [/INST]",
        f"[INST] <<SYS>>{SYSTEM}<</SYS>>{ASKED} [/INST]",
        "do not add up",
    ),
    "the whole talk is judged": Case(
        "Judge the last of {{ messages | length }}:\n" + talk("{{ m.role }}: {{ m.content }}\n") + "Safe?",
        JINJA,
        f"Judge the last of 1:\nuser: {ASKED}\nSafe?",
        f"Judge the last of 2:\nsystem: {SYSTEM}\nuser: {ASKED}\nSafe?",
    ),
    "a system message must be there": Case(
        "{% if messages[0].role == 'system' %}{% set told = messages[0].content %}{% endif %}{{ bos_token + told }}"
        + talk(said("user", " [INST] ", " [/INST]"), said("assistant", "", "{{ eos_token }}")),
        JINJA,
        None,
        f"<s>{SYSTEM} [INST] {ASKED} [/INST]",
        "is undefined",
    ),
    "messages of another kind": Case(
        "{% for m in messages %}{{ '<|' + m['from'] + '|>' + m['value'] }}{% endfor %}", REFUSED, words="'from'"
    ),
    "nothing but tools": Case("{% for tool in tools %}{{ tool.name }}{% endfor %}", REFUSED, words="not iterable"),
    "nothing of what is asked": Case("Call a tool.{% if tools %}{{ tools }}{% endif %}", REFUSED, words="same text"),
    "every conversation is refused": Case("{{ raise_exception('not for talks') }}", REFUSED, words="not for talks"),
    "no default among several": Case({"tool_use": "a", "rag": "b"}, REFUSED, words="'tool_use', 'rag' and none"),
    "no end": Case(
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", REFUSED, words="more than 2 s"
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_day() -> Iterator[None]:
    with one_day():
        yield


@pytest.mark.parametrize("name", CASES)
def test_every_kind_comes_out_as_transformers_has_it(name: str) -> None:
    case = CASES[name]
    outcome = examine(name, {**TOKENS, "chat_template": case.source})
    assert (outcome.kind, case.words in outcome.words) == (case.kind, True), outcome


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].kind != REFUSED])
def test_the_prompts_themselves(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    chat, names = write_artifact({**TOKENS, "chat_template": case.source}, tmp_path)
    for messages, prompt in ((CONVERSATIONS[0], case.asked), (CONVERSATIONS[3], case.with_system)):
        if prompt is None:
            with pytest.raises(UserError, match=case.words or "undefined") as failure:
                chat_prompt(tmp_path, messages)
            assert "--plain continues a text" in str(failure.value.hint)
            continue
        assert chat_prompt(tmp_path, messages) == ([], prompt)
        if not isinstance(chat.conversation, str):
            config = json.loads((tmp_path / "mlc-chat-config.json").read_text())
            assert runtime_writes(config, names, messages, webllm=True) == prompt


def test_several_tokens_at_the_beginning_are_token_ids(tmp_path: Path) -> None:
    case = CASES["two tokens at the beginning"]
    _, names = write_artifact({**TOKENS, "chat_template": case.source}, tmp_path)
    conv = json.loads((tmp_path / "mlc-chat-config.json").read_text())["conv_template"]
    assert [names[token] for token in conv["system_prefix_token_ids"]] == ["[MASK]", "<sop>"]
    assert conv["system_template"] == "<|system|>\n{system_message}"
    assert conv["stop_str"] == ["<|user|>"]  # nothing stands after an answer: it ends where the next question begins
    assert [names[token] for token in conv["stop_token_ids"]] == ["</s>", "<|user|>"]


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name].kind == REFUSED])
def test_what_is_refused_says_so_and_what_to_do(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    chat, _ = write_artifact({**TOKENS, "chat_template": case.source}, tmp_path)
    (warning,) = chat.warnings
    assert "chat template cannot be used" in warning
    assert "model.conv_template=chatml" in warning
    assert has_chat(tmp_path)
    with pytest.raises(UserError, match="cannot be used") as failure:
        chat_prompt(tmp_path, CONVERSATIONS[0])
    assert case.words in str(failure.value)
    assert not (tmp_path / "chat_template.jinja").exists()


def test_the_command_counts_kinds_and_names_what_is_not_native(tmp_path: Path) -> None:
    for name in ("the day", "the first question bare", "every conversation is refused"):
        (tmp_path / f"{name}.json").write_text(json.dumps({**TOKENS, "chat_template": CASES[name].source}))
    lines = list(table(examine_folder(tmp_path)))
    assert lines[-6:-1] == [
        "    1 native", "    0 native without a system message", "    1 Jinja", "    1 refused", "    0 wrong"
    ]  # fmt: skip
    assert lines[0].startswith("Jinja      the first question bare: ")
    assert lines[1] == "refused    every conversation is refused: the template refuses: not for talks"
    assert next(table([Outcome("x", WRONG, "why")])) == "wrong      x: why"


@pytest.mark.parametrize(("field", "value"), [("roles", {"user": "<|usr|>", "assistant": "<|bot|>"}), ("seps", [""])])
def test_a_wrong_artifact_is_found(field: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def sabotaged(**given: Any) -> dict[str, Any]:
        made = chat_config(**given)
        return {**made, "conv_template": {**made["conv_template"], field: value}}

    monkeypatch.setattr("tests.chat_templates.chat_config", sabotaged)
    assert examine("x", {**TOKENS, "chat_template": CASES["a role for everyone"].source}).kind == WRONG
