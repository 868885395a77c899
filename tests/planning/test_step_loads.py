"""What a step is said to load into its process is what its code loads."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.core.filestore import FileStore
from llm_build.core.fingerprint import FileSources
from llm_build.core.step import Step
from llm_build.planner import resolve
from llm_build.planner.graph.bench import bench_plan
from llm_build.planner.graph.graph import build_plan

WORDS = ([], ["quant.method=gptq"], ["quant.method=awq"], ["quant.budget=4.25"], ["target=cuda"], ["target.cpu=arm64"])
# bench measures in a process that it starts; verify.weights shares code with verify and runs no library.
NOT_HERE = {"bench", "verify.weights"}


@pytest.fixture(scope="module")
def steps() -> dict[str, list[Step]]:
    recipes = [resolve.resolve(compose.compose(words, None), find_folders()) for words in WORDS]
    found: dict[str, list[Step]] = {}
    for recipe in recipes:
        plan = build_plan([recipe])
        measured = bench_plan([(recipe, {})], plan).steps if not recipe.undecided else {}
        for step in {**plan.steps, **measured}.values():
            found.setdefault(step.name, []).append(step)
    return found


def test_who_reaches_tvm_loads_it_and_nobody_else(steps: dict[str, list[Step]], tmp_path: Path):
    sources = FileSources(FileStore(tmp_path))
    for name, each in steps.items():
        for step in each:
            files = sources.code(step.function, step.code)[1]
            reaches = any(file.endswith("targets/tvm_import.py") for file in files)
            assert step.loads.startswith("tvm") == ((reaches and name not in NOT_HERE) or searches(step)), name


def searches(step: Step) -> bool:
    """Whether it may compile the search of mse, whose module it loads by name."""
    return step.name == "quantize" and step.params["method"]["name"] in ("mse", "awq")


def test_who_has_torch_among_its_tools_loads_it(steps: dict[str, list[Step]]):
    for name, each in steps.items():
        assert all((step.loads == "torch") == ("torch" in step.tools) for step in each), name


def test_lower_and_a_search_load_the_compiler(steps: dict[str, list[Step]]):
    assert {name for name, each in steps.items() if each[0].loads == "tvm-compiler"} == {"lower", "quantize"}
    assert {name for name, each in steps.items() if each[0].loads == "tvm-runtime"} == {"verify"}
