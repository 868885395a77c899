"""Every command line of the README and the docs is run: what builds is planned, what only looks is run as it is."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from llm_build.__main__ import main, run
from llm_build.cli.arguments import Arguments, parse
from llm_build.core.errors import BuildError
from llm_build.targets import nvidia_gpus
from tests.conftest import ROOT, Shell
from tests.docs.command_lines import CommandLine, blocks, command_lines, words_of
from tests.docs.pages import PAGES, name
from tests.matrix.checkpoints import DEMO, make
from tests.weights import quantized_checkpoints

QUANTIZATION = ROOT / "docs" / "guides" / "quantization.md"
RUN = {"plan", "why", "diff", "verify-provenance", "list", "graph", "doctor", "help"}  # they only look
PARSED = {"gc"}  # it removes, and these tests share a store
LINES = [pytest.param(line, id=f"{name(page)}:{line.line}") for page in PAGES for line in command_lines(page)]
# What only a build of hours or a second machine would make: the command is read, and not run.
MADE_ELSEWHERE = {"browser", "recipes/phone.lock.yaml", "recipe=gpu_server", "--against", "--key", "--locked"}
HUB = ("llama2", "pythia")  # starts of presets whose checkpoints small ones stand for
HUB_RECIPES = ("phone", "browser", "gpu_server")
PLUGINS = {"joblib": "hydra_joblib_launcher", "submitit": "hydra_submitit_launcher", "optuna": "hydra_optuna_sweeper"}


@pytest.fixture(scope="module")
def folder(demo: Shell, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader of the docs would be: built folders, an own checkpoint, texts and keys."""
    folder = tmp_path_factory.mktemp("docs")
    built = demo.folder / "dist" / "demo-q4f16_1-cpu"
    for copy in ("a", "b", "phone", "demo-q4f16_1-cpu", "demo-q3f16_1-cpu"):
        shutil.copytree(built, folder / "dist" / copy)
    shutil.copytree(ROOT / "recipes", folder / "recipes")
    make("gpt_neox", folder / "gpt_neox")
    quantized_checkpoints.write(folder / "awq", "awq")
    own = next(block for block in blocks(QUANTIZATION) if any("q5f16_1" in line for line in block))
    (folder / "conf" / "quant").mkdir(parents=True)
    (folder / "conf" / "quant" / "q5f16_1.yaml").write_text("\n".join(own))
    (folder / "my.txt").write_text("A text of the user's own.\n" * 4000)
    return folder


@pytest.fixture
def places(folder: Path) -> dict[str, str]:
    """What the docs name -> what is there."""
    remote = f"file://{folder}/remote"
    return {
        "/data/llama-2-7b": str(DEMO), "/data/my-checkpoint": str(DEMO), "hf://org/name@main": str(DEMO),
        "/data/model-awq": str(folder / "awq"), "s3://bucket/folder": remote, "s3://models/store": remote,
    }  # fmt: skip


def in_place(words: Sequence[str], places: dict[str, str], folder: Path) -> list[str]:
    """``words`` with what is here in place of what the docs name, and of checkpoints of a hub."""
    for named, here in places.items():
        words = [word.replace(named, here) for word in words]
    choices = dict(word.split("=", 1) for word in words if "=" in word)
    model = choices.get("model", "")
    if "model.source" in choices or not (choices.get("recipe") in HUB_RECIPES or model.startswith(HUB)):
        return list(words)
    sources = [str(folder / "gpt_neox" if part.startswith("pythia") else DEMO) for part in model.split(",")]
    auto = ["model=auto" if word == f"model={model}" else word for word in words]
    return [*auto, f"model.source={','.join(sources)}"]


def expected(line: CommandLine) -> int:
    """The exit code that the page says or means."""
    return 2 if line.shown.startswith("error:") or "unsupported" in line.shown else 0


@pytest.mark.parametrize("line", LINES)
def test_a_documented_command_works(
    line: CommandLine, demo: Shell, folder: Path, places: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = in_place(words_of(line.line), places, folder)
    if plugin := next((plugin for plugin in PLUGINS if plugin in line.line), None):
        pytest.importorskip(f"hydra_plugins.{PLUGINS[plugin]}")
    if "[host]" in line.line and not nvidia_gpus.count():
        pytest.skip("there is no GPU here")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("LLM_BUILD_STORE", str(demo.store))
    arguments = parse(words)
    if arguments.command in PARSED or MADE_ELSEWHERE.intersection(words):
        return
    if arguments.options.cfg or arguments.command in RUN:
        assert main(words) == expected(line)
    else:
        assert planned(arguments) == expected(line)


def planned(arguments: Arguments) -> int:
    """The exit code of `build plan` with the same words."""
    plain = replace(arguments.build, locked=False)
    try:
        return run(replace(arguments, command="plan", word="", other="", build=plain))
    except BuildError as error:
        print(error.message, error.hint)
        return error.exit_code
