"""What a sweep's command line, or a recipe, makes of Hydra's sweepers, and when it needs no Hydra at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_build.app.request import is_sweep
from llm_build.app.sweep import sweep
from llm_build.cli.arguments import parse
from llm_build.config import run_hydra
from llm_build.config.choices import Composed
from llm_build.core.errors import UserError
from tests.conftest import ROOT

RECIPE = """
defaults:
  - override /verify: "off"
model: {max_batch_size: 2}
hydra:
  sweeper:
    params:
      quant: q4f16_1,q8f16_1
      target: cpu,webgpu
sweep:
  exclude: [{quant: q8*, target: webgpu}]
"""
SWEEPER = '''
from hydra.plugins.sweeper import Sweeper


class Two(Sweeper):
    """Asks for one job, and then for one that depends on what became of it."""

    def __init__(self, first, second):
        self.jobs = [first, second]

    def setup(self, *, hydra_context, task_function, config):
        from hydra.core.plugins import Plugins

        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        for index, choice in enumerate(self.jobs):
            (result,) = self.launcher.launch([[*arguments, choice]], index)
            print("returned", result.return_value)
'''


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_BUILD_STORE", str(tmp_path / "store"))
    return tmp_path


def swept(*words: str) -> list[Composed]:
    """The jobs of `build WORDS`."""
    found: list[Composed] = []
    options = parse(words).build
    assert is_sweep(options)
    sweep(options, lambda composed: len(found.extend(composed) or ()))
    return found


def choices(found: list[Composed], *groups: str) -> list[tuple[str, ...]]:
    return [tuple(job.choices[group] for group in groups) for job in found]


@pytest.fixture
def no_hydra(monkeypatch):
    def refuse(*_: object) -> int:
        raise AssertionError("Hydra was asked")

    return lambda: monkeypatch.setattr(run_hydra, "run_hydra", refuse)


def test_globs_ranges_and_choices():
    found = swept("-m", "quant=glob(q8f*)", "model.max_batch_size=range(1,3)", "target=choice(cpu,webgpu)")
    assert choices(found, "quant", "target")[::4] == [("q8f16_1", "cpu"), ("q8f32_1", "cpu")]
    assert [job.values["model"]["max_batch_size"] for job in found] == [1, 1, 2, 2] * 2
    assert found[0].overrides == ("quant=q8f16_1", "++model.max_batch_size=1", "target=cpu")


def test_a_line_that_was_swept_before_needs_no_hydra(folder, no_hydra):
    (folder / "conf" / "quant").mkdir(parents=True)
    mine = folder / "conf" / "quant" / "mine.yaml"
    mine.write_text("defaults: [q4f16_1]\n")
    words = ("-m", "quant=mine,q8f16_1", "target=cpu,webgpu")
    first = swept(*words)
    no_hydra()
    again = swept(*words)
    assert again == first
    assert again[0].values["quant"] is again[1].values["quant"], "equal sections are one object"
    mine.write_text("defaults: [q4f16_1]\nbits: 3\n")
    with pytest.raises(AssertionError, match="Hydra was asked"):
        swept(*words)


@pytest.mark.parametrize(
    "word", ["hydra.sweep.dir=elsewhere", "hydra.sweeper.max_batch_size=1", "dist.path=${oc.env:HOME}"]
)
def test_a_line_that_means_more_is_not_remembered(word, no_hydra):
    words = ("-m", "target=cpu,webgpu", word)
    assert len(swept(*words)) == 2
    no_hydra()
    with pytest.raises(AssertionError, match="Hydra was asked"):
        swept(*words)


def test_a_recipe_may_say_what_is_swept(folder, no_hydra):
    (folder / "recipes").mkdir()
    (folder / "recipes" / "nightly.yaml").write_text(RECIPE)
    everything = [("q4f16_1", "cpu"), ("q4f16_1", "webgpu"), ("q8f16_1", "cpu"), ("q8f16_1", "webgpu")]
    found = swept("recipe=nightly")
    assert choices(found, "quant", "target") == everything
    assert {job.values["model"]["max_batch_size"] for job in found} == {2}
    assert choices(swept("recipe=nightly", "quant=q0f16"), "quant", "target") == [("q0f16", "cpu"), ("q0f16", "webgpu")]
    no_hydra()
    assert choices(swept("recipe=nightly"), "quant", "target") == everything, "it is remembered, with and without -m"
    assert not is_sweep(parse(["recipe=demo"]).build)
    assert not is_sweep(parse(["quant=q0f16"]).build)


@pytest.mark.parametrize("codes", [(1, 2), (2, 1), (0, 1), (2, 130), (2, 0)])
def test_a_step_that_failed_counts_more_than_what_cannot_be_built(codes):
    """Of a sweep in batches, each with an exit code of its own: 130, else 1, else 2."""
    left = list(codes)
    options = parse(["-m", "target=cpu,webgpu", "hydra.sweeper.max_batch_size=1"]).build
    assert sweep(options, lambda jobs: left.pop(0)) == next(code for code in (130, 1, 2) if code in codes)
    assert not left


def test_run_makes_one_build_of_a_recipe_that_sweeps(folder):
    (folder / "recipes").mkdir()
    (folder / "recipes" / "nightly.yaml").write_text(RECIPE)
    assert is_sweep(parse(["recipe=nightly"]).build)
    assert not is_sweep(parse(["--run", "recipe=nightly"]).build)


def test_a_mistake_in_a_sweep_is_told():
    with pytest.raises(UserError, match="quant=q4f16_11: no such choice; did you mean q4f16_1"):
        swept("-m", "quant=q4f16_11,q8f16_1")


def test_another_sweeper_asks_for_one_job_after_the_other(folder):
    plugin = folder / "plugins" / "hydra_plugins" / "two"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(SWEEPER)
    (folder / "conf" / "hydra" / "sweeper").mkdir(parents=True)
    said = "_target_: hydra_plugins.two.Two\nfirst: quant=q0f16\nsecond: quant=q8f16_1\n"
    (folder / "conf" / "hydra" / "sweeper" / "two.yaml").write_text(said)
    path = os.pathsep.join((str(ROOT / "tools" / "path"), str(plugin.parent.parent)))
    command = [sys.executable, "-m", "llm_build", "plan", "-m", "hydra/sweeper=two", "verify=off"]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "LLM_BUILD_HYDRA_PLUGINS": "hydra_plugins.two.Two"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.partition(":")[0] for line in done.stdout.splitlines() if line.startswith(("demo", "returned"))]
    assert lines == ["demo-q0f16-cpu", "returned 0", "demo-q8f16_1-cpu", "returned 0"]
