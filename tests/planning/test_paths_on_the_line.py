"""Paths on the command line: any name that a folder may have is taken as it is."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from llm_build.cli.arguments import parse
from llm_build.config import compose
from llm_build.config.axes import axes_of
from llm_build.core.errors import UserError

NAMES = [
    "a=b", "a#b", "with space", "a[1]", "a(1)", "a{b}", "d'Angelo", 'a"b', "Müller", "模型", "a&b;c", "a!b",
    "~/models/x", "a b=c", "x-method=rtn", "a\\b", "end=\\", "a'b\\'c", "tab\tbed", "a*b?", "a%b@c+d:e|f", "a<b>c",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["model.source", "dist.path", "store.path"])
def test_a_path_is_taken_as_it_is(key: str, name: str) -> None:
    section, _, field = key.partition(".")
    path = name if name.startswith("~") else f"/data/{name}"
    assert compose.compose([f"{key}={path}"], None).values[section][field] == path


@pytest.mark.parametrize(
    ("value", "expected"),
    [("'/a b'", "/a b"), ('"/a=b"', "/a=b"), ("hf://org/name@main", "hf://org/name@main"), ("/a\\,b", "/a,b"),
     ("null", None), ("'/a,b=c'", "/a,b=c")],
)  # fmt: skip
def test_what_means_something_still_does(value: str, expected: str | None) -> None:
    assert compose.compose([f"model.source={value}"], None).values["model"]["source"] == expected


def test_several_paths_are_a_sweep() -> None:
    assert compose.normalise(["model.source=/é,/b"]) == ["++model.source='/é',/b"]
    with pytest.raises(UserError, match="several values make a sweep"):
        compose.compose(["model.source=/é,/b"], None)
    jobs = [compose.compose([f"model.source={path}"], None) for path in ("/é", "/b")]
    assert axes_of(jobs, ["one", "two"]).at == {"one": ("/é",), "two": ("/b",)}


@pytest.mark.parametrize("name", ["a=b", "d'x", "a[1]", "é#"])
def test_the_quoted_command_that_is_printed_works(name: str) -> None:
    """For a value that is no path."""
    with pytest.raises(UserError, match="does not compose: name=") as caught:
        compose.compose([f"name={name}"], None)
    assert "Exception" not in caught.value.message
    command = shlex.split(caught.value.hint.rpartition("   ")[0])
    assert compose.compose(command[1:], None).values["name"] == name


def test_a_folder_that_a_sweep_named_can_be_passed_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = parse(["diff", "dist/x-method=rtn", "dist/y-method=rtn", "quant=q0f16"])
    assert (arguments.word, arguments.other) == ("dist/x-method=rtn", "dist/y-method=rtn")
    assert arguments.overrides == ("quant=q0f16",)
    (tmp_path / "x=1").mkdir()
    assert parse(["verify-provenance", "x=1"]).word == "x=1"
    assert parse(["verify-provenance", "/abs/x=1", "hydra/launcher=joblib"]).overrides == ("hydra/launcher=joblib",)
    assert parse(["plan", "hydra/launcher=joblib", "x=1"]).overrides == ("hydra/launcher=joblib", "x=1")


@pytest.mark.parametrize(
    ("line", "word", "other", "overrides"),
    [
        (["x=1 and y"], "x=1 and y", "", ()),
        (["model=x is what?"], "model=x is what?", "", ()),
        (["model.source=the place of"], "", "", ("model.source=the place of",)),
        (["model=x is what?", "quant=q8f16_1"], "model=x is what?", "", ("quant=q8f16_1",)),
        (["name=my model", "hello"], "hello", "", ("name=my model",)),
        (["name=my model", "a=b"], "a=b", "", ("name=my model",)),
        (["quant=q8f16_1", "hello"], "hello", "", ("quant=q8f16_1",)),
        (["quant.candidates=[a, b]", "hello"], "hello", "", ("quant.candidates=[a, b]",)),
        (["x=1", "name=what is it?"], "x=1", "name=what is it?", ()),
        (["model=demo", "hello"], "model=demo", "hello", ()),
        (["model=demo", "model=x is what?"], "model=demo", "model=x is what?", ()),
    ],
)
def test_a_prompt_and_a_folder_of_generate_may_hold_an_equals_sign(
    line: list[str], word: str, other: str, overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders x=1 and model=demo are there: a folder goes before a key. A text with spaces is the prompt where no other
    word is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x=1").mkdir()
    (tmp_path / "model=demo").mkdir()
    if not word:
        with pytest.raises(UserError, match="needs"):
            parse(["generate", *line])
        return
    arguments = parse(["generate", *line])
    assert (arguments.word, arguments.other, arguments.overrides) == (word, other, overrides)
