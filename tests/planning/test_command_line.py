"""The command line: its pages of help, what is said of a word or an option that it does not know, Hydra's options."""

from __future__ import annotations

import shlex

import pytest
from hydra._internal.utils import get_args_parser

from llm_build.__main__ import main
from llm_build.cli.arguments import parse
from llm_build.cli.commands import COMMANDS
from llm_build.cli.help import first_page
from llm_build.cli.mistakes import REFUSED
from llm_build.cli.options import known_flags, parser
from llm_build.config.choices import choices_of, find_folders, nearest_choices
from llm_build.core.errors import UserError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_BUILD_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def refused(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What `build LINE` says on its way out with exit code 2."""
    assert main(shlex.split(line)) == 2, line
    shown = capsys.readouterr()
    assert not shown.out
    assert len(shown.err.splitlines()) <= 3
    return shown.err


def test_the_first_page_fits_a_screen_and_names_every_command():
    page = first_page().splitlines()
    assert len(page) <= 30
    assert max(map(len, page)) <= 96
    assert all(any(line.startswith(f"  {name} ") for line in page) for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_page(name: str, capsys):
    assert main(["help", name]) == 0
    page = capsys.readouterr().out
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out == page
    assert main(["-h", name, "quant=nothing"]) == 0, "a page needs no recipe"
    assert page.startswith("usage: build")
    assert COMMANDS[name].takes in page
    for example in COMMANDS[name].examples:
        assert example in page
        words = shlex.split(example)[1:]
        assert parse(words).command == name


def test_every_option_is_on_the_page_of_its_command(capsys):
    titles = {group.title for group in parser()._action_groups[2:]}
    assert {option for command in COMMANDS.values() for option in command.options} <= titles
    for group in parser()._action_groups[2:]:
        name = group.title if group.title in COMMANDS else "options"
        assert main(["help", str(name)]) == 0
        page = capsys.readouterr().out
        if name == "options" and group.title == "running":
            assert main(["help", "build"]) == 0
            page += capsys.readouterr().out
        assert all(flag in page for option in group._group_actions for flag in option.option_strings)


def test_no_page_of_help_is_told_with_the_way_on(capsys):
    assert "did you mean bench?" in refused("help benhc", capsys)
    assert "next: build list quant" in refused("help quant", capsys)


def test_every_option_of_hydra_is_there_or_refused_by_name(capsys):
    here = known_flags(parser())
    refusals = {flag for flags in REFUSED for flag in flags}
    for action in get_args_parser()._actions:
        for flag in action.option_strings:
            assert flag in here or flag in refusals, flag
    for flags in REFUSED:
        for flag in flags:
            assert f"{flags[0]} is refused: " in refused(f"{flag} x", capsys)
            assert f"{flags[0]} is refused: " in refused(f"{flag}=x", capsys)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("--quant q8f16_1", "next: build quant=q8f16_1"),
        ("--quant=q8f16_1", "next: build quant=q8f16_1"),
        ("-model demo", "next: build model=demo"),
        ("--model.source /x", "next: build model.source=/x"),
        ("plan --context-window-size 512", "next: build model.context_window_size=512"),
        ("--budget", "next: build quant.budget=..."),
        ("--package web_page", "package=web_page"),
        ("quant", "next: build list quant"),
        ("org/name", "next: build model=auto model.source=hf://org/name"),
        ("model=org/name", "next: build model=auto model.source=hf://org/name"),
        ("model=auto model.source=org/name", "next: build model=auto model.source=hf://org/name"),
        ("plna", "did you mean `build plan`?"),
        ("plan bench", "build plan takes no words"),
        ("why fetch convert", "build why takes STEP"),
        ("--quite", "did you mean --quiet?"),
        ("--max-tokens 5", "--max-tokens is an option of `build generate`"),
        ("bench -n", "build bench has no dry run"),
        ("--resolve", "build --cfg job --resolve"),
        ("--run -m", "allowed: one of them"),
        ("quant=q4", "did you mean q4f16_1, "),
        ("model=smollm", "did you mean smollm"),
        ("quant=zzz", "allowed: one of "),
        ("target=cpv", "did you mean cpu?"),
        ("model=demo,llama", "next: build -m model=demo,llama"),
        ("model.family=lama", "'lama' is not possible; did you mean llama?"),
        ("quant.method=rtm", "allowed: auto, rtn, mse, awq, gptq, imported; did you mean rtn?"),
        ("modell.source=x", "did you mean model.source?"),
        ("++modell.source=x", "did you mean model.source?"),
        ("nothing.x=1", "no such section of keys; allowed: model, "),
        ("dist=x", "allowed: dist.key=value"),
        ("debug.dump=DIR", "next: build lower --dump DIR"),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(line: str, said: str, capsys):
    assert said in refused(line, capsys)


def test_a_folder_as_a_word_is_a_checkpoint(folder, capsys):
    (folder / "checkpoint").mkdir()
    for word in ("checkpoint", "./checkpoint", f"model={folder}/checkpoint"):
        assert f"next: build model=auto model.source={word.removeprefix('model=')}" in refused(word, capsys)


@pytest.mark.parametrize("word", ["q3", "q4", "q6", "q8"])
def test_of_choices_that_begin_alike_the_usual_one_comes_first(word: str):
    assert nearest_choices("quant", word, list(choices_of("quant", find_folders())))[0] == f"{word}f16_1"


def test_no_list_of_choices_is_longer_than_a_line(capsys):
    for group in ("model", "quant", "target"):
        for word in ("", "q", "zzz", "llama"):
            with pytest.raises(UserError) as caught:
                parse_choice(group, word)
            assert len(caught.value.message) < 140


def parse_choice(group: str, word: str) -> None:
    from llm_build.config.compose import compose

    compose([f"{group}={word}zz"], None)
