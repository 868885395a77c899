"""What becomes of real chat templates:

    python -m tests.chat_templates FOLDER

Each file of the folder is a JSON object with ``chat_template`` (a template, or several by name) and the named tokens of
a tokenizer_config.json. For each, the files of an artifact are made as `package` makes them; conversations of one, two
and three turns, with and without a system message, are written from these files as `build generate`, WebLLM and MLC's
runtimes write them, and compared with what transformers writes. Exit code 1: something is wrong.

How the runtimes write a conversation is written here a second time, from their sources (MLC-LLM's
``Conversation.as_prompt``, WebLLM's ``conversation.ts``), and shares nothing with builder/formats.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llm_build.formats.artifact_config import NAME
from llm_build.formats.chat import Chat, chat_of, files_of
from llm_build.formats.chat_template import DATE, Conversation, render_all
from llm_build.formats.chatconfig import Texts, chat_config
from llm_build.formats.tokenizer import read_files
from llm_build.runtime.chat import read_own

NATIVE, PARTLY, JINJA, REFUSED, WRONG = (
    "native", "native without a system message", "Jinja", "refused", "wrong",
)  # fmt: skip
Messages = list[dict[str, str]]
_TALK = ("Why is it so?", "Because it is.", "And then what?", "Nothing at all.", "Is that all?")
_TURNS = [
    [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(_TALK[:count])]
    for count in (1, 3, 5)
]
CONVERSATIONS: list[Messages] = [
    *_TURNS,
    *([{"role": "system", "content": "Answer in French."}, *turns] for turns in _TURNS),
]
_TOKENS = re.compile(r"<\|?[^<>\s]{1,40}?\|?>|\[/?[A-Za-z]+\]")  # what a tokenizer would have as tokens of their own
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")  # some templates put them together from the role
_SIZES = {
    "vocab_size": 32000, "context_window_size": 64, "sliding_window_size": -1, "prefill_chunk_size": 64,
    "attention_sink_size": -1, "tensor_parallel_shards": 1, "pipeline_parallel_stages": 1, "max_batch_size": 1,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Outcome:
    """``kind``: one of the five; ``words``: why, or what is wrong; ``empty_block``: MLC's runtimes write a system block
    around nothing, WebLLM does not."""

    name: str
    kind: str
    words: str = ""
    empty_block: bool = False


def transformers_writes(source: str, tokens: Mapping[str, str], messages: Messages) -> str | None:
    """None: it refuses, or writes nothing of what is asked. A template that wants contents as parts gets them so."""
    from transformers.utils.chat_template_utils import render_jinja_template

    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]
    for form in (messages, parts):
        try:
            [[text], _] = render_jinja_template(
                [form], chat_template=source, add_generation_prompt=True, tools=None, documents=None, **tokens
            )
        except Exception:  # whatever a template raises
            continue
        if messages[-1]["content"].casefold() in text.casefold():
            return text
    return None


@contextmanager
def one_day() -> Iterator[None]:
    """transformers writes the day that an artifact writes."""
    from transformers.utils import chat_template_utils

    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Day:
            return cls.fromisoformat(DATE)

    before = chat_template_utils.datetime
    chat_template_utils.datetime = Day
    try:
        yield
    finally:
        chat_template_utils.datetime = before


def runtime_writes(config: Mapping[str, Any], names: Mapping[int, str], messages: Messages, webllm: bool) -> str:
    """The prompt that a runtime makes of mlc-chat-config.json. ``names``: texts of token ids."""
    conv = config["conv_template"]
    prompt = "".join(names[token] for token in conv["system_prefix_token_ids"])
    system = conv["system_message"]
    if messages[0]["role"] == "system":
        system, messages = messages[0]["content"], messages[1:]
    opening = conv["system_template"].replace("{system_message}", system)
    if webllm and not system and conv.get("render_empty_system_message", True) is False:
        opening = ""
    prompt += opening
    closings = conv["seps"] if len(conv["seps"]) == 2 else conv["seps"] * 2
    for place, message in enumerate(messages):
        who = message["role"]
        if place > 0 or not opening or conv["add_role_after_system_message"]:
            prompt += conv["roles"][who] + conv["role_content_sep"]
        prompt += conv["role_templates"][who].replace(f"{{{who}_message}}", message["content"])
        prompt += closings[who == "assistant"]
    return prompt + conv["roles"]["assistant"] + conv["role_empty_sep"]


def write_artifact(given: Mapping[str, Any], folder: Path) -> tuple[Chat, dict[int, str]]:
    """The files of the chat as `package` writes them, and the texts of token ids."""
    template = given["chat_template"]
    if isinstance(template, Mapping):
        template = [{"name": name, "template": text} for name, text in template.items()]
    named = {key: value for key, value in given.items() if key != "chat_template" and value is not None}
    sources = template if isinstance(template, list) else [{"template": template}]
    tokens = list(
        dict.fromkeys([*named.values(), *_ROLES, *_TOKENS.findall("".join(each["template"] for each in sources))])
    )
    added = [{"id": id_, "content": token, "special": True} for id_, token in enumerate(tokens)]
    source = folder / "source"
    source.mkdir()
    files = {
        "tokenizer.json": {"added_tokens": added, "model": {"type": "BPE", "vocab": {}, "merges": []}},
        "tokenizer_config.json": {**named, "chat_template": template},
    }
    for name, value in files.items():
        (source / name).write_text(json.dumps(value), "utf-8")
    tokenizer = read_files({name: source / name for name in files})
    chat = chat_of(tokenizer, None)
    config = chat_config(
        family="llama", quantization="q4f16_1", model_config=_SIZES, texts=Texts({}, {}, tokenizer),
        files=["tokenizer.json"], conv_template=chat.conversation, refused=chat.refused,
    )  # fmt: skip
    for name, text in {**files_of(chat, tokenizer), NAME: json.dumps(config)}.items():
        (folder / name).write_text(text, "utf-8")
    return chat, dict(enumerate(tokens))


def examine(name: str, given: Mapping[str, Any]) -> Outcome:
    """Build one, write conversations with it, compare."""
    with TemporaryDirectory(prefix="llm-build-") as place:
        folder = Path(place)
        chat, names = write_artifact(given, folder)
        written = _generate_writes(folder)
        config = json.loads((folder / NAME).read_text())
    source = given["chat_template"]
    source = source.get("default") if isinstance(source, Mapping) else source
    tokens = {key: value for key, value in given.items() if key != "chat_template" and value is not None}
    endless = "takes more than" in chat.refused  # transformers has no limits
    theirs = [transformers_writes(source, tokens, each) if source and not endless else None for each in CONVERSATIONS]
    return _verdict(name, chat, config, names, written, theirs)


def _generate_writes(folder: Path) -> list[str | None]:
    """As chat_prompt of builder/runtime/chat.py writes one, but all in one process. None: it is refused."""
    own = read_own(folder)
    if own is None:
        return [None for _ in CONVERSATIONS]
    texts = render_all(own, [Conversation(messages) for messages in CONVERSATIONS]).texts
    return [text if isinstance(text, str) else None for text in texts]


def _verdict(
    name: str, chat: Chat, config: Mapping[str, Any], names: Mapping[int, str],
    written: Sequence[str | None], theirs: Sequence[str | None],
) -> Outcome:  # fmt: skip
    for messages, ours, text in zip(CONVERSATIONS, written, theirs, strict=True):
        if ours != text and not (text is None and ours is not None and not _says(ours, messages)):
            return Outcome(name, WRONG, f"generate writes {ours!r}; transformers {text!r}")
    if chat.refused:
        return Outcome(name, REFUSED, chat.refused)
    if isinstance(chat.conversation, str):
        refused = sum(text is None for text in theirs)
        taken = f"; it refuses {refused} of {len(theirs)} conversations" if refused else ""
        return Outcome(name, JINJA, chat.warnings[0].split("(", 1)[1].split("):")[0] + taken)
    pairs = [(messages, text) for messages, text in zip(CONVERSATIONS, theirs, strict=True) if text is not None]
    wrong = [each for each, text in pairs if runtime_writes(config, names, each, webllm=True) != text]
    noted = sum("written in another way" in note for note in chat.notes)
    if any(each[0]["role"] != "system" for each in wrong) or len(wrong) != noted:
        return Outcome(name, WRONG, f"{len(wrong)} conversations in MLC's form differ, and {noted} are noted")
    blocks = any(runtime_writes(config, names, each, webllm=False) != text for each, text in pairs if each not in wrong)
    if blocks and not any("empty system block" in note for note in chat.notes):
        return Outcome(name, WRONG, "MLC's empty system block is not noted")
    return Outcome(name, PARTLY if wrong else NATIVE, "; ".join(chat.notes), blocks)


def _says(text: str, messages: Messages) -> bool:
    return messages[-1]["content"].casefold() in text.casefold()


def examine_folder(folder: Path) -> list[Outcome]:
    files = sorted(folder.glob("*.json"))
    if not files:
        raise SystemExit(f"{folder}: no *.json; each is an object with a chat_template and bos_token, eos_token, ...")
    with one_day(), ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda file: examine(file.stem, json.loads(file.read_text("utf-8"))), files))


def table(outcomes: Sequence[Outcome], everything: bool = False) -> Iterator[str]:
    counts = Counter(outcome.kind for outcome in outcomes)
    for kind in (JINJA, REFUSED, WRONG, *((NATIVE, PARTLY) if everything else ())):
        for outcome in outcomes:
            if outcome.kind == kind:
                yield f"{kind:<10} {outcome.name}: {outcome.words}"
    for kind in (NATIVE, PARTLY, JINJA, REFUSED, WRONG):
        yield f"{counts[kind]:5} {kind}"
    yield f"{sum(outcome.empty_block for outcome in outcomes):5} of the native ones with MLC's empty system block"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chat_templates", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--all", action="store_true", help="a line for each native template, too")
    given = parser.parse_args()
    outcomes = examine_folder(given.folder)
    print("\n".join(table(outcomes, given.all)))
    return int(any(outcome.kind == WRONG for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
