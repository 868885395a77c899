"""Chat templates of well-known shapes: ours renders what transformers renders, or says what it cannot."""

from __future__ import annotations

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from builder.formats.chattemplate import CONVERSATIONS, CannotExpress, Template, render, translate

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
    "message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
    "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
    "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
    "{% if loop.index0 == 0 and system_message != false %}"
    "{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
)


def theirs(source: str, messages) -> str:
    return render_jinja_template([messages], chat_template=source, add_generation_prompt=True, **TOKENS)[0][0]


@pytest.mark.parametrize("source", [CHATML, LLAMA_3, LLAMA_2, ZEPHYR], ids=["chatml", "llama3", "llama2", "zephyr"])
def test_conversations_are_what_transformers_writes(source: str):
    found = translate(Template(source, TOKENS))
    for name, messages in CONVERSATIONS.items():
        assert found.begins + render(found.conv, messages, empty_system=False) == theirs(source, messages), name
    assert all("empty system block" in note for note in found.notes)


def test_system_messages_that_the_template_refuses_are_noted():
    found = translate(Template(NO_SYSTEM, TOKENS))
    assert [note.partition(":")[0] for note in found.notes] == [
        "a system message",
        "a system message and several turns",
    ]
    assert "System role not supported" in found.notes[0]
    messages = CONVERSATIONS["several turns"]
    assert found.begins + render(found.conv, messages, empty_system=True) == theirs(NO_SYSTEM, messages)


def test_parts_of_chatml():
    conv = translate(Template(CHATML, TOKENS)).conv
    assert conv["system_template"] == "<|im_start|>system\n{system_message}<|im_end|>\n"
    assert conv["system_message"] == "You are helpful."
    assert conv["stop_str"] == ["<|im_end|>"]
    assert conv["seps"] == ["<|im_end|>\n"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "changes what was said"),
        ("{{ raise_exception('no') }}", "refuses: no"),
        ("{% for m in messages %}{{ m['content'] }", "cannot be rendered"),
        ("{{ strftime_now('%d') }}{{ messages[0]['content'] }}", "cannot be rendered"),
        ("{% for m in messages %}{{ loop.index }} {{ m.content }};{% endfor %}", "do not share"),
        ("always {% for m in messages if m['role'] != 'system' %}[{{ m['content'] }}]{% endfor %}", "fixed"),
    ],
)
def test_what_the_format_has_no_words_for_is_said(source: str, said: str):
    with pytest.raises(CannotExpress, match=said):
        translate(Template(source, TOKENS))
