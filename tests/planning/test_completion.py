"""Tab completion: what may follow on a line, and bash itself with what `--shell-completion install=bash` prints."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llm_build.__main__ import main
from llm_build.cli.commands import COMMANDS
from llm_build.cli.completion import SHELLS, complete
from llm_build.cli.options import parser
from llm_build.config.choices import GROUPS, choices_of, find_folders
from llm_build.config.keys import all_keys, allowed_words
from llm_build.config.strict import ALLOWED, Range
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "a b").mkdir()
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "own.yaml").write_text("name: own\n")
    return tmp_path


def completed(line: str) -> list[str]:
    return complete(line, find_folders())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("build pl", ["plan"]),
        ("llm-build pl", ["plan"]),
        ("python -m llm_build pl", ["plan"]),
        ("build plan quant=q8f1", ["quant=q8f16_1"]),
        ("build -m quant=q4f32_1,q8f3", ["quant=q4f32_1,q8f32_1"]),
        ("build quant=q8f16_1,q8f", ["quant=q8f16_1,q8f32_1"]),
        ("build recipe=ow", ["recipe=own"]),
        ("build recipe=demo,ow", ["recipe=demo,own"]),
        ("build quant.method=", [f"quant.method={name}" for name in ("auto", "rtn", "mse", "awq", "gptq", "imported")]),
        ("build quant.zero_point=t", ["quant.zero_point=true"]),
        ("build ++quant.zero_point=t", ["++quant.zero_point=true"]),
        ("build model.family=gemma3", ["model.family=gemma3_text"]),
        ("build target.cpu=ar", ["target.cpu=arm64"]),
        ("build model.conv_template=c", ["model.conv_template=chatml"]),
        ("build model.max_batch_size=", ["model.max_batch_size=auto"]),
        ("build model.con", ["model.context_window_size=", "model.conv_template="]),
        ("build quant.cal", ["quant.calibration."]),
        ("build quant.calibration.te", ["quant.calibration.text="]),
        ("build tar", ["target=", "target."]),
        ("build model.source=mod", ["model.source=models/"]),
        ("build model.source='models/mi", ["model.source=models/mine/"]),
        ("build diff mod", ["models/", "model=", "model."]),
        ("build list rec", ["recipe"]),
        ("build help ben", ["bench"]),
        ("build --js", ["--json"]),
        ("build bench --ag", ["--again"]),
        ("build plan --ag", []),
        ("build --cfg j", ["job"]),
        ("build --cfg=j", ["--cfg=job"]),
        ("build --info def", ["defaults", "defaults-tree"]),
        ("build --config-dir mod", ["models/"]),
        ("build --shell-completion install=z", ["install=zsh"]),
        ("build why nothing", []),
        ("build quant=zz", []),
        ("", [*COMMANDS]),
    ],
)
def test_what_may_follow(line: str, words: list[str]):
    found = completed(line)
    assert (found[: len(words)] if not line else found) == words


def test_all_that_is_there_is_offered():
    assert set(COMMANDS) <= set(completed("build "))
    assert {f"{group}=" for group in GROUPS} <= set(completed("build plan "))
    for group in GROUPS:
        assert completed(f"build {group}=") == [f"{group}={name}" for name in choices_of(group, find_folders())]
    for key in all_keys():
        assert f"{key}=" in completed(f"build {key}"), key
        assert [f"{key}={word}" for word in allowed_words(key)] == completed(f"build {key}=") or key in (
            "model.family", "target.cpu", "model.conv_template", "model.source", "dist.path", "store.path",
            "store.remote", "quant.calibration.text", "verify.text", "provenance.key",
        )  # fmt: skip
    closed = [key for key, rule in ALLOWED.items() if not isinstance(rule, Range)]
    assert all(allowed_words(key) for key in closed)
    for name, command in COMMANDS.items():
        offered = completed(f"build {name} --")
        for group in parser()._action_groups:
            if group.title in (name, *command.options):
                assert {o for a in group._group_actions for o in a.option_strings if o[:2] == "--"} <= set(offered)


@pytest.mark.parametrize("line", ["", "install", "install=tcsh", "query=", "install=bash query=bash", "quant=q0f32"])
def test_what_it_is_not_asked_like_is_told(line: str, capsys):
    assert main(["--shell-completion", *line.split()]) == 2
    assert "install, uninstall, query, each with bash, zsh, fish" in capsys.readouterr().err


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_can_install_ask_and_uninstall(shell: str, monkeypatch, capsys):
    assert main(["-sc", f"install={shell}"]) == 0
    assert "llm-build" in capsys.readouterr().out
    assert main(["-sc", f"uninstall={shell}"]) == 0
    assert "_llm_build_complete" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", "build plan quant.method=g something")
    monkeypatch.setenv("COMP_POINT", str(len("build plan quant.method=g")))
    assert main(["-sc", f"query={shell}"]) == 0
    assert capsys.readouterr().out == "quant.method=gptq\n"


def in_bash(folder: Path, line: str) -> list[str]:
    """COMPREPLY of bash after the line, as readline would ask for it: split at its $COMP_WORDBREAKS."""
    bin_ = folder / "bin"
    bin_.mkdir(exist_ok=True)
    (bin_ / "build").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m llm_build "$@"\n')
    (bin_ / "build").chmod(0o755)
    script = (
        'compopt() { :; }; eval "$(build --shell-completion install=bash)"; complete -p build > /dev/null || exit 3\n'
        f"COMP_LINE={shlex.quote(line)}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=(build); COMP_CWORD=1\n"
        '_llm_build_complete; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PATH": f"{bin_}:{os.environ['PATH']}", "PYTHONPATH": path}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=env, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def test_bash_replaces_what_follows_the_equals_sign(folder: Path):
    assert in_bash(folder, "build pl") == ["plan"]
    assert in_bash(folder, "build quant.method=g") == ["gptq"]
    assert in_bash(folder, "build model.source=models/a") == ["models/a\\ b/"]
