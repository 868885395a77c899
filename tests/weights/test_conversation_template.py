"""Chat templates of well-known shapes: ours renders what transformers renders, or says what it cannot."""

from __future__ import annotations

from datetime import datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from llm_build.formats.chat_template import DATE, CannotRender, Conversation, Template, render_all, writes_date
from llm_build.formats.conversation_template import (
    CONVERSATIONS,
    EMPTY_BLOCK,
    CannotExpress,
    Translation,
    render,
    translate,
)

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


LLAMA_3_1 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content'] | trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}{% else %}{% set day = '26 Jul 2024' %}"
    "{% endif %}{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: ' + day + '\n\n' + said + '<|eot_id|>' }}"
    "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim }}"
    "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ALWAYS_A_HEADER = LLAMA_3.replace("{% if add_generation_prompt %}", "").removesuffix("{% endif %}")
PHI_3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI_4_MINI = PHI_3.replace("\n", "")
EXAONE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}{{ '[|system|][|endofturn|]\n' }}{% endif %}"
    "{{ '[|' + m['role'] + '|]' + m['content'] + ('\n' if m['role'] == 'user' else '[|endofturn|]\n') }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}"
)
DEEPSEEK_CODER = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}{{ 'You write programs.\n' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '### Instruction:\n' + m['content'] + '\n' }}"
    "{% else %}{{ '### Response:\n' + m['content'] + '\n<|EOT|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:' }}{% endif %}"
)
VICUNA = (
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] + ' ' }}{% else %}{{ 'A chat. ' }}{% endif %}"
    "{% for m in messages if m['role'] != 'system' %}{% if m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
ANSWERS_AFTER_A_BREAK = (  # what follows the role of an answer does not follow that of a question
    "{% for m in messages %}{{ '<' + m['role'] + '>' + ('\n' if m['role'] == 'assistant' else '') + m['content'] }}"
    "{{ '<end>' }}{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
MARKED_FOR_TRAINING = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{% set end = eos_token %}{{ m['content'] + end }}{% endgeneration %}{% else %}{{ m['content'] + eos_token }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DAY = (
    "{{ bos_token + '<|system|>Today is ' + strftime_now('%d %B %Y') + '. ' }}"
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}{{ '<|end|>' }}"
    "{% for m in messages if m.role != 'system' %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
NATIVE = {
    "chatml": CHATML,
    "llama 2": LLAMA_2,
    "llama 3": LLAMA_3,
    "llama 3.1": LLAMA_3_1,
    "always a header": ALWAYS_A_HEADER,
    "the day": DAY,
    "zephyr": ZEPHYR,
    "phi 3": PHI_3,
    "phi 4 mini": PHI_4_MINI,
    "exaone": EXAONE,
    "deepseek coder": DEEPSEEK_CODER,
    "vicuna": VICUNA,
    "answers after a break": ANSWERS_AFTER_A_BREAK,
    "generation": MARKED_FOR_TRAINING,
}


@pytest.fixture(autouse=True)
def _one_day(monkeypatch: pytest.MonkeyPatch):
    """transformers writes the day; here it is always the one that ours is."""

    class Day(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromisoformat(DATE)

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Day)


def theirs(source: str, messages, answer: bool = True) -> str:
    return render_jinja_template([messages], chat_template=source, add_generation_prompt=answer, **TOKENS)[0][0]


@pytest.mark.parametrize("name", NATIVE)
def test_conversations_are_what_transformers_writes(name: str):
    translation = translate(Template(NATIVE[name], TOKENS))
    for title, messages in CONVERSATIONS.items():
        assert translation.begins + render(translation.conv, messages) == theirs(NATIVE[name], messages), title
    assert set(translation.notes) <= {EMPTY_BLOCK}


@pytest.mark.parametrize("name", NATIVE)
def test_the_templates_themselves_are_rendered_as_transformers_does(name: str):
    every = [Conversation(messages, answer) for messages in CONVERSATIONS.values() for answer in (True, False)]
    texts = render_all(Template(NATIVE[name], TOKENS), every).texts
    assert texts == [theirs(NATIVE[name], each.messages, each.answer) for each in every]


def test_an_empty_system_block_stays_where_the_template_writes_one():
    conv = translate(Template(LLAMA_3_1, TOKENS)).conv
    assert (conv["system_message"], "render_empty_system_message" in conv) == ("", False)
    assert conv["system_template"].startswith("<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024")
    assert translate(Template(PHI_3, TOKENS)).conv["render_empty_system_message"] is False


STOPS = {"phi 3": "<|end|>", "always a header": "<|eot_id|>", "exaone": "[|endofturn|]", "deepseek coder": "<|EOT|>",
         "vicuna": "</s>", "llama 2": "</s>"}  # fmt: skip


@pytest.mark.parametrize(("name", "stop"), STOPS.items())
def test_an_answer_ends_where_the_template_ends_it(name: str, stop: str):
    assert translate(Template(NATIVE[name], TOKENS)).conv["stop_str"] == [stop]


def test_mlc_alone_writes_an_empty_system_block_and_one_note_says_so():
    assert translate(Template(ZEPHYR, TOKENS)).notes == (EMPTY_BLOCK,)


def test_system_messages_that_the_template_refuses_are_noted():
    translation = translate(Template(NO_SYSTEM, TOKENS))
    assert [note.partition(":")[0] for note in translation.notes] == [
        "a system message",
        "a system message and two turns",
        "a system message and three turns",
    ]
    assert "System role not supported" in translation.notes[0]
    messages = CONVERSATIONS["three turns"]
    assert translation.begins + render(translation.conv, messages, empty_system=True) == theirs(NO_SYSTEM, messages)


def test_parts_of_chatml():
    conv = translate(Template(CHATML, TOKENS)).conv
    assert conv["system_template"] == "<|im_start|>system\n{system_message}<|im_end|>\n"
    assert conv["system_message"] == "You are helpful."
    assert conv["stop_str"] == ["<|im_end|>"]
    assert conv["seps"] == ["<|im_end|>\n"]


def test_a_template_that_must_have_the_day_gets_a_fixed_one():
    translation = translate(Template(DAY, TOKENS))
    assert DATE == "2024-07-26"
    assert render(translation.conv, CONVERSATIONS["one question"]).startswith(
        "<|system|>Today is 26 July 2024. <|end|>"
    )
    assert writes_date(Template(DAY, TOKENS))
    assert not writes_date(Template(ZEPHYR, TOKENS))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "changes what was said"),
        ("{{ raise_exception('no') }}", "refuses: no"),
        ("{% for m in messages %}{{ m['content'] }", "cannot be read"),
        ("{{ no_such_function('%d') }}{{ messages[0]['content'] }}", "is undefined"),
        ("{% for m in messages %}{{ loop.index }} {{ m.content }};{% endfor %}", "in another way"),
        ("{{ 1 // 0 }}", "fails: ZeroDivisionError"),
        ("{{ messages[0] + 1 }}", "fails: TypeError"),
        ("{{ messages[9]['content'] }}", "has no attribute|has no element|undefined"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "namespace"),
        ("{{ 'x' * 100000000000 }}", "takes more than 512 MB"),
        ("{{ '%2000000000d' | format(1) }}", "takes more than 512 MB"),
        ("{{ 'x' * 2000000 }}", "more than 1,048,576 characters"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 2 s"),
        ("{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}", "RecursionError"),
        ("{% for a in range(99999999) %}{% endfor %}", "OverflowError"),
    ],
)
def test_what_cannot_be_rendered_or_expressed_is_said(source: str, reason: str):
    with pytest.raises(CannotExpress, match=reason):
        translate(Template(source, TOKENS))


PIECES = st.sampled_from(["", "\n", " ", "<|end|>", "</s>", "[INST]", "##", "user", "x"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(*[PIECES] * 6), st.booleans())
def test_a_translation_adds_up_or_is_refused(pieces: tuple[str, ...], clear: bool):
    """Templates of many makes: what is expressed renders as the template does, for every conversation not noted."""
    before, after, role, close, system_open, system_close = pieces
    source = (
        f"{{% for m in messages %}}{{% if m.role == 'system' %}}{system_open}{{{{ m.content }}}}{system_close}"
        f"{{% elif m.role == 'user' %}}{before}{{{{ m.content }}}}{after}"
        f"{{% else %}}{role}{{{{ m.content }}}}{close}{{% endif %}}{{% endfor %}}"
        + (f"{{% if add_generation_prompt %}}{role}{{% endif %}}" if clear else role)
    )
    try:
        translation: Translation = translate(Template(source, TOKENS))
    except CannotExpress:
        return
    for name, messages in CONVERSATIONS.items():
        if not any(note.startswith(f"{name}:") for note in translation.notes):
            assert translation.begins + render(translation.conv, messages) == theirs(source, messages)


def test_one_conversation_that_is_refused_leaves_the_others():
    texts = render_all(Template(NO_SYSTEM, TOKENS), [Conversation(each) for each in CONVERSATIONS.values()]).texts
    assert [isinstance(text, CannotRender) for text in texts] == [False, False, False, True, True, True]
