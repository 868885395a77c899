"""The artifact's tokenizer, stop tokens and chat against what transformers makes of the checkpoint's own files.

verify.reference writes down what AutoTokenizer says of some texts and conversations; verify holds the artifact's
tokenizer.json, mlc-chat-config.json and chat_template.jinja against it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from llm_build.core.errors import StepError
from llm_build.core.step_io import File, Json
from llm_build.formats import chat_template, tokenizer
from llm_build.formats.artifact_config import NAME, read_chat_config
from llm_build.formats.chat_template import CannotRender, Conversation, Template
from llm_build.formats.conversation_template import CONVERSATIONS, render
from llm_build.formats.jinja_process import in_parts

REFERENCE = "tokenizer_reference.json"
_TEXTS = (
    "Once upon a time, in 1984, it's said: (a+b)*c != 3.14!",
    "Käse, naïve café; Привет, мир. 你好，世界。こんにちは 안녕 مرحبا हिन्दी ไทย",
    "  two  spaces\n\n\ttab\r\n 🦙🏽 \N{COMBINING ACUTE ACCENT}",
    "def f(x):\n    return {x: [1, 22, 333, 4444]}\n",
)
_HINT = "the tokenizer's files are at fault, not the weights or the library: is tokenizer.json the checkpoint's own?"


def reference(source: Mapping[str, File], generation: File | None, config: File) -> tuple[Json, list[str]]:
    """What transformers says, {} where it cannot load the tokenizer, and what the user should know.

    Args:
        source: the tokenizer's files as the checkpoint has them, by name.
    """
    from transformers import AutoTokenizer, GenerationConfig

    with TemporaryDirectory(prefix="llm-build-") as name:
        files = {**source, "config.json": config, **({"generation_config.json": generation} if generation else {})}
        for file_name, file in files.items():
            (Path(name) / file_name).symlink_to(file.path.absolute())
        try:
            theirs = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a class of transformers raises over files that it does not know
            return {}, [f"transformers cannot load the tokenizer ({error}): tokens were not compared"]
        theirs, warnings = _as_in_the_file(theirs, name, "tokenizer.json" in source)
        ends = [theirs.eos_token_id, json.loads(config.path.read_text()).get("eos_token_id")]
        if generation:
            ends.append(GenerationConfig.from_pretrained(name).eos_token_id)
    try:
        ids, chats = [[text, theirs(text)["input_ids"]] for text in _TEXTS], _chats(theirs)
    except Exception:
        raise
    except BaseException as error:  # a panic of the library's Rust
        raise tokenizer.damaged(error, "tokenizer.json cannot cut a text:") from error
    return {
        "ids": ids,
        "special": {str(token): id_ for id_, token in theirs.added_tokens_decoder.items() if token.special},
        "length": len(theirs),
        "ends": sorted({id_ for end in ends for id_ in (end if isinstance(end, list) else [end]) if id_ is not None}),
        "chats": chats,
    }, warnings


def _as_in_the_file(theirs: Any, folder: str, has_file: bool) -> tuple[Any, list[str]]:
    """Some classes of transformers build a tokenizer of their own from the vocabulary alone; where that cuts texts in
    another way than the checkpoint's tokenizer.json, the file counts."""
    from transformers import PreTrainedTokenizerFast

    if not has_file or type(theirs) is PreTrainedTokenizerFast:
        return theirs, []
    as_written = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    if all(theirs(text)["input_ids"] == as_written(text)["input_ids"] for text in _TEXTS):
        return theirs, []
    name = type(theirs).__name__
    return as_written, [f"transformers' {name} cuts texts in another way than tokenizer.json: the file is followed"]


def _chats(theirs: Any) -> list[list[Json]]:
    """[messages, text, ids] of the conversations that the template takes. It runs within limits before transformers,
    which has none, runs it."""
    source = theirs.chat_template
    source = source.get("default") if isinstance(source, dict) else source
    if not source:
        return []
    own = Template(source, {name: str(token) for name, token in theirs.special_tokens_map.items()})
    conversations = list(CONVERSATIONS.values())
    try:
        ours = chat_template.render_all(own, [Conversation(messages) for messages in conversations])
    except CannotRender:
        return []
    taken = [each for each, text in zip(conversations, ours.texts, strict=True) if not isinstance(text, CannotRender)]
    given = [in_parts(messages) if ours.parts else list(messages) for messages in taken]
    with _one_day():
        rendered = [
            theirs.apply_chat_template(
                messages, chat_template=source, tokenize=False, add_generation_prompt=True
            )
            for messages in given
        ]  # fmt: skip
    ids = [theirs(text, add_special_tokens=False)["input_ids"] for text in rendered]
    return [list(chat) for chat in zip(taken, rendered, ids, strict=True)]


@contextmanager
def _one_day() -> Iterator[None]:
    """transformers' templates write the day that chat_template.DATE is."""
    from transformers.utils import chat_template_utils

    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Day:
            return cls.fromisoformat(chat_template.DATE)

    before = chat_template_utils.datetime
    chat_template_utils.datetime = Day
    try:
        yield
    finally:
        chat_template_utils.datetime = before


def check(name: str, artifact: Mapping[str, Path], expected: Json) -> None:
    """Raises StepError where the artifact's files give other tokens, another end or another chat.

    Args:
        artifact: tokenizer.json, mlc-chat-config.json and, where there is one, chat_template.jinja with
            special_tokens_map.json.
        expected: what ``reference`` made; {} is nothing to compare with.
    """
    if not expected:
        return
    ours = tokenizer.load(artifact["tokenizer.json"])
    chat = read_chat_config(artifact[NAME])
    problem = next(_problems(ours, chat, artifact, expected), None)
    if problem:
        raise StepError(f"{name}: the artifact's tokenizer is not the checkpoint's: {problem}", _HINT)


def _problems(ours: Any, chat: Json, artifact: Mapping[str, Path], expected: Json) -> Iterator[str]:
    for text, ids in expected["ids"]:
        if (own := tokenizer.encode(ours, text)) != ids:
            yield f"{text[:40]!r} is {_start(own, ids)}; transformers says {_start(ids, own)}"
    for token, id_ in expected["special"].items():
        if (found := ours.token_to_id(token)) != id_:
            yield f"the special token {token!r} is {found}; transformers says {id_}"
    if ours.get_vocab_size() != expected["length"]:
        yield f"it has {ours.get_vocab_size()} tokens; transformers counts {expected['length']}"
    conv, allowed = chat["conv_template"], set(expected["ends"])
    allowed |= {ours.token_to_id(text) for text in conv["stop_str"]}
    stops = set(conv["stop_token_ids"])
    if not set(expected["ends"]) - {-1} <= stops <= allowed:
        yield f"texts end at the tokens {sorted(stops)}; the checkpoint says {expected['ends']}"
    yield from _chat_problems(ours, conv, artifact, expected["chats"])


def _chat_problems(ours: Any, conv: Json, artifact: Mapping[str, Path], chats: Sequence[Json]) -> Iterator[str]:
    """Of the checkpoint's own template, and of MLC's form of it where there is no system message (a note says where
    those differ)."""
    if chat_template.FILE in artifact:
        tokens = json.loads(artifact["special_tokens_map.json"].read_text())
        own = Template(chat_template.read_text(artifact[chat_template.FILE]), tokens)
        texts = chat_template.render_all(own, [Conversation(messages) for messages, _, _ in chats]).texts
        for text, (_, expected, _) in zip(texts, chats, strict=True):
            if text != expected:
                yield f"a chat is {str(text)[:80]!r}; transformers renders {expected[:80]!r}"
    if conv["name"] != "checkpoint":
        return
    for messages, text, ids in chats:
        if messages[0]["role"] == "system":
            continue
        written = render(conv, messages)
        own_ids = [*conv["system_prefix_token_ids"], *tokenizer.encode(ours, written, special=False)]
        if own_ids != ids:
            yield f"a chat in MLC's form is {written[:80]!r}; transformers renders {text[:80]!r}"


def _start(ids: Sequence[int], other: Sequence[int]) -> str:
    """A few ids around the first difference."""
    first = next((place for place, (a, b) in enumerate(zip(ids, other, strict=False)) if a != b), 0)
    return f"... {list(ids[first : first + 4])} at token {first}"
