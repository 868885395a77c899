"""verify compares the artifact's tokens, ends and chat with transformers'; what differs is the tokenizer's fault."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from llm_build.core.errors import StepError
from llm_build.core.step_io import File
from llm_build.steps.tokenizer_check import check, reference
from tests.weights.tokenizers_of_kinds import byte_fallback, byte_level, write
from tests.weights.weights_line import (
    ARCHITECTURE,
    group_scheme,
    run_package,
    run_weights,
    source_tensors,
    write_checkpoint,
)

CHATML = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "chat_template": CHATML,
    "bos_token": "<s>",
    "eos_token": "<|im_end|>",
    "additional_special_tokens": ["<|im_start|>"],
}


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """An artifact of a checkpoint whose chat tokens are in tokenizer_config.json alone, and what transformers says."""
    work = tmp_path_factory.mktemp("check")
    folder = write_checkpoint(work / "source", source_tensors(), bos_token_id=0, eos_token_id=1)
    write(folder, byte_level(), tokenizer_config=CONFIG, generation_config={"eos_token_id": [1]})
    scheme = asdict(group_scheme("q4f16_1"))
    built = run_weights(folder, work, ARCHITECTURE, scheme)
    out = run_package(built, work, ARCHITECTURE, scheme)
    artifact = work / "artifact"
    artifact.mkdir()
    for name, file in out.outputs().items():
        shutil.copy(file.path, artifact / name)
    fetched = built.fetch.outputs()
    source = {name.removeprefix("source/"): file for name, file in built.fetch.outputs("source/").items()}
    expected, warnings = reference(source, fetched["file/generation_config.json"], fetched["file/config.json"])
    assert warnings == []
    return artifact, json.loads(json.dumps(expected))


def _files(folder: Path) -> dict[str, Path]:
    return {path.name: path for path in folder.iterdir()}


def test_an_artifact_as_it_was_built_passes(packaged: tuple[Path, Any]):
    artifact, expected = packaged
    check("x", _files(artifact), expected)
    assert len(expected["chats"]) == 6
    assert expected["ends"] == [1, 300]
    check("x", {}, {})  # transformers could not load it


def _edit(file: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def sabotage(folder: Path) -> None:
        value = json.loads((folder / file).read_text())
        change(value)
        (folder / file).write_text(json.dumps(value))

    return sabotage


def _text(file: str, old: str, new: str) -> Callable[[Path], None]:
    def sabotage(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new))

    return sabotage


def _swap_words(tokenizer: Any) -> None:
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


CHAT = "mlc-chat-config.json"
SABOTAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "another tokenizer": (lambda folder: write(folder, byte_fallback()) and None, "transformers says"),
    "two words swapped": (_edit("tokenizer.json", _swap_words), "transformers says"),
    "no beginning": (_edit("tokenizer.json", lambda t: t.update(post_processor=None)), "transformers says"),
    "a chat token lost": (_edit("tokenizer.json", lambda t: t["added_tokens"].pop()), "special token"),
    "another stop": (_edit(CHAT, lambda c: c["conv_template"].update(stop_token_ids=[1, 5])), "texts end at"),
    "a stop too many": (_edit(CHAT, lambda c: c["conv_template"]["stop_token_ids"].append(7)), "texts end at"),
    "no stop": (_edit(CHAT, lambda c: c["conv_template"].update(stop_token_ids=[])), "texts end at"),
    "another role": (_edit(CHAT, lambda c: c["conv_template"]["roles"].update(user="<|im_start|>x\n")), "MLC's form"),
    "no first token": (_edit(CHAT, lambda c: c["conv_template"].update(system_prefix_token_ids=[])), "MLC's form"),
    "another template": (_text("chat_template.jinja", "im_end", "im_fin"), "a chat is"),
    "another name": (_edit("special_tokens_map.json", lambda m: m.update(bos_token="</s>")), "a chat is"),
}


@pytest.mark.parametrize("name", SABOTAGE)
def test_sabotage_is_blamed_on_the_tokenizer(name: str, packaged: tuple[Path, Any], tmp_path: Path):
    artifact, expected = packaged
    folder = shutil.copytree(artifact, tmp_path / "artifact")
    sabotage, reason = SABOTAGE[name]
    sabotage(folder)
    with pytest.raises(StepError, match=r"^x: the artifact's tokenizer is not the checkpoint's: ") as error:
        check("x", _files(folder), expected)
    assert reason in error.value.message
    assert "not the weights or the library" in error.value.hint


def test_files_that_transformers_cannot_load_are_not_compared(tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "config.json").write_text("{}")
    files = {path.name: File(path, "", 0) for path in tmp_path.iterdir()}
    expected, warnings = reference({"tokenizer.json": files["tokenizer.json"]}, None, files["config.json"])
    assert expected == {}
    assert "tokens were not compared" in warnings[0]
