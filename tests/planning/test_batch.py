"""Jobs put together from parts are those that Hydra composes.

python -m tests.planning.test_batch    compares every choice of every group; CI compares eight of each
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import pytest

from llm_build.config.choices import GROUPS, Composed, choices_of, find_folders, shipped
from llm_build.config.from_hydra import guard, to_plain
from llm_build.config.sweeps.batch import compose_jobs, parse_overrides
from llm_build.core.errors import UserError

SWEPT = GROUPS[:-1]  # all but recipe


class Loader:
    """Hydra's, and how often it composed."""

    def __init__(self, loader: Any, master: Any) -> None:
        self.repository = loader.repository
        self.count = 0
        self._loader, self._master = loader, master

    def load(self, overrides: Sequence[str]) -> Any:
        from omegaconf import OmegaConf

        self.count += 1
        config = self._loader.load_sweep_config(self._master, list(overrides))
        OmegaConf.set_struct(config, False)
        return config

    def plain(self, overrides: Sequence[str]) -> Composed:
        return to_plain(self.load(overrides), overrides)


@contextmanager
def hydra() -> Iterator[Loader]:
    """Hydra over the folders that this one sees."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from llm_build.config.hydra_plugins import plugins

    GlobalHydra.instance().clear()
    with plugins(find_folders()), initialize_config_dir(str(shipped("conf")), version_base="1.3", job_name="build"):
        loader = GlobalHydra.instance().hydra.config_loader
        yield Loader(loader, loader.load_configuration("build", [], RunMode.MULTIRUN))


def same(loader: Loader, jobs: Sequence[Sequence[str]]) -> int:
    """How often Hydra composed for jobs that are, all of them, what it composes."""
    loader.count = 0
    found = compose_jobs(jobs, loader.load, loader.repository)
    count = loader.count
    for job, overrides in zip(found, jobs, strict=True):
        wanted = loader.plain(overrides)
        assert job == wanted, overrides
        assert {k: list(v) for k, v in job.values.items() if isinstance(v, dict)} == {
            k: list(v) for k, v in wanted.values.items() if isinstance(v, dict)
        }, "keys in another order"
    return count


def diagonal(choices: dict[str, list[str]], shift: int, length: int) -> list[list[str]]:
    """Jobs that have every choice of every group; another ``shift`` pairs them otherwise."""
    columns = [
        [f"{group}={name}" for name in islice(cycle(names), index * shift, index * shift + length)]
        for index, (group, names) in enumerate(choices.items())
    ]
    return [list(row) for row in zip(*columns, strict=True)]


def compare_all(rows: int | None = None) -> int:
    """Every choice of every group, or ``rows`` of each. The number of jobs."""
    choices = {group: list(choices_of(group, find_folders()))[:rows] for group in SWEPT}
    length = max(map(len, choices.values()))
    known = diagonal(choices, 0, length)
    with hydra() as loader:
        mixed = diagonal(choices, 3, length)
        loader.count = 0
        found = compose_jobs([*known, *mixed], loader.load, loader.repository)
        assert loader.count == length, "the second half was composed again"
        for job, overrides in zip(found[length:], mixed, strict=True):
            assert job == loader.plain(overrides), overrides
    return 2 * length


def product(*lists: Sequence[str]) -> list[list[str]]:
    import itertools

    return [list(job) for job in itertools.product(*lists)]


@pytest.fixture
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, **files: str) -> None:
    for name, text in files.items():
        file = folder / (name.replace("__", "/") + ".yaml")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


def test_every_choice_of_every_group():
    assert compare_all(rows=8) == 16


def test_a_product_is_composed_once_for_each_choice_and_setting():
    jobs = product(
        ["model=demo", "model=llama2"],
        ["quant=q4f16_1", "quant=q8f16_1"],
        ["++quant.method=rtn", "++quant.method=mse"],
        ["++model.max_batch_size=2"],
    )
    with hydra() as loader:
        assert same(loader, jobs) == 1 + 3 + 1  # a method and a scheme share a section: four of quant


def test_settings_of_all_kinds(empty_folder):
    settings = [
        "+model.mine=3",
        "~quant.damping",
        "name=a b",
        "++pins.tools.x='1.0,2'",
        "++sweep.exclude=[{a:1}]",
    ]
    with hydra() as loader:
        assert same(loader, product(["quant=q0f16", "quant=q0f32"], ["target=cpu", "target=webgpu"],
                                    *([each] for each in settings))) == 3  # fmt: skip


def test_what_hydra_refuses_is_refused():
    with hydra() as loader, pytest.raises(UserError, match="does not compose: Could not append to config"):
        guard(lambda: compose_jobs([["+model.source=x"]], loader.load, loader.repository), find_folders())


@pytest.mark.parametrize(
    ("files", "jobs"),
    [
        ({"conf__quant__mine": "name: '${model.source}'\n"}, product(["quant=mine"], ["model=demo", "model=llama2"])),
        ({"conf__quant__mine": "name: ${oc.env:HOME}\n"}, product(["quant=mine"], ["model=demo", "model=llama2"])),
        ({"conf__quant__mine": "# @package _global_\nmodel: {source: x}\nquant: {name: q}\n"},
         product(["quant=q0f16", "quant=mine"], ["model=demo", "model=llama2"])),
        ({"conf__quant__mine": "defaults: [q4f16_1, /target@here: webgpu]\n"},
         product(["quant=q0f16", "quant=mine"], ["model=demo", "model=llama2"])),
        ({"conf__target__mine": "defaults: [/quant@_global_.model: q0f32]\nkind: cpu\n"},
         product(["target=cpu", "target=mine"], ["quant=q4f16_1", "quant=q8f16_1"])),
        ({"recipes__mine": "defaults:\n  - override /quant: q0f32\nmodel: {max_batch_size: 1}\nname: x\n"},
         product(["recipe=mine"], ["model=demo", "model=llama2"], ["target=cpu", "target=cuda"])),
        ({"recipes__mine": "name: ${model.source}-x\n"},
         product(["recipe=mine"], ["model=demo", "model=tinyllama"], ["target=cpu", "target=webgpu"])),
        ({"conf__model__deep__er": "defaults: [base]\nfamily: llama\n", "conf__model__base": "source: demo\n"},
         product(["model=deep/er", "model=demo"], ["target=cpu", "target=webgpu"])),
    ],
    ids=["value", "environment", "global", "group", "elsewhere", "recipe", "recipe value", "folder"],
)  # fmt: skip
def test_files_of_the_user(empty_folder, files, jobs):
    write(empty_folder, **files)
    with hydra() as loader:
        same(loader, jobs)


@pytest.mark.parametrize(
    "override",
    ["+quant@model.inner=q0f16", "+quant@mine=q0f16,x", "model.source=${quant.name}", "~recipe", "hydra.job.num=3",
     "quant/sub=x", "model={a: 1}"],
)  # fmt: skip
def test_what_is_left_to_hydra(override):
    assert parse_overrides(["model=demo", override]) is None


def test_additions_and_interpolations_on_the_command_line():
    jobs = product(["model=demo", "model=llama2"], ["+quant@model.inner=q0f16", "++model.x=${quant.name}"],
                   ["quant=q8f16_1", "quant=q4f16_1"])  # fmt: skip
    with hydra() as loader:
        assert same(loader, jobs) == len(jobs)


if __name__ == "__main__":
    print(compare_all(), "jobs are what Hydra composes")
