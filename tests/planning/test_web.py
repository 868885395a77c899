"""Planning for browsers: names, steps, and what is refused with the way out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llm_build.app.generate import check_runs
from llm_build.app.merge import merge, with_distinct_names
from llm_build.app.request import BuildRequest
from llm_build.config import compose
from llm_build.config.choices import find_folders
from llm_build.config.schema import Recipe
from llm_build.core.errors import Unsupported, UserError
from llm_build.planner import names, resolve
from llm_build.planner.graph import graph
from llm_build.targets import npm, webgpu
from llm_build.targets import tools as lacking

FOR_BROWSERS = ["quant=q4f32_1", "target=webgpu-f32"]
NAMED = ("package", "verify.weights")  # steps that know the name of the artifact


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A path with an emcc and an npm, so that the tests do not depend on this machine's."""
    for name in ("emcc", "npm"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "emscripten-version.txt").write_text('"3.1.6"\n')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("LLM_BUILD_STORE", str(tmp_path / "store"))
    return tmp_path


def recipe_of(*overrides: str) -> Recipe:
    return resolve.resolve(compose.compose(list(overrides), None), find_folders())


def request_of(*overrides: str) -> BuildRequest:
    """As a command makes it: with the tools of this machine looked for."""
    return merge([compose.compose(list(overrides), None)], find_folders())


def steps_of(*overrides: str) -> dict[str, graph.Step]:
    return {step.name: step for step in graph.build_plan([recipe_of(*overrides)]).steps.values()}


def test_a_page_is_another_folder_made_from_the_same_steps():
    plain, page = steps_of(*FOR_BROWSERS), steps_of(*FOR_BROWSERS, "package=web_page")
    assert [step.id for step in plain.values() if step.name not in NAMED] == [
        step.id for step in page.values() if step.name not in NAMED and not step.name.startswith("web_page")
    ]
    assert {"runtime.wasm", "link"} <= plain.keys()
    assert page.keys() - plain.keys() == {"web_page.engine", "web_page"}
    assert recipe_of(*FOR_BROWSERS).name == "demo-q4f32_1-webgpu-f32"
    assert recipe_of(*FOR_BROWSERS, "package=web_page").name == "demo-q4f32_1-webgpu-f32-web_page"


def test_models_share_the_runtime_and_lowering_knows_nothing_of_emscripten(tools: Path):
    one, other = steps_of(*FOR_BROWSERS), steps_of(*FOR_BROWSERS, "model.context_window_size=128")
    assert one["runtime.wasm"] == other["runtime.wasm"]
    assert one["lower"] != other["lower"]
    assert one["runtime.wasm"].params["emscripten"] == "3.1.6"
    (tools / "emscripten-version.txt").write_text('"4.0.0"\n')
    newer = steps_of(*FOR_BROWSERS)
    assert newer["runtime.wasm"] != one["runtime.wasm"]
    assert newer["link"] != one["link"]
    assert newer["lower"] == one["lower"]


def test_a_page_needs_a_library_for_browsers():
    with pytest.raises(Unsupported) as caught:
        recipe_of("target=cpu", "package=web_page")
    assert "the target is of kind cpu" in caught.value.message
    assert "target=webgpu-f32" in caught.value.hint


def test_initial_memory_counts_what_the_model_brings():
    sizes = {"vocab_size": 32000, "context_window_size": 4096, "max_batch_size": 4}
    small = webgpu.initial_memory(sizes, 1 << 20)
    assert small % (1 << 20) == 0
    assert webgpu.initial_memory(sizes, 100 << 20) >= small + (99 << 20)
    assert webgpu.initial_memory(sizes | {"context_window_size": 1 << 20}, 1 << 20) > small


def test_the_lock_file_of_the_browser_tests_has_the_engine_that_pages_get():
    lock = (Path(__file__).parents[1] / "browser" / "package-lock.json").read_text()
    assert npm.WEB_LLM.integrity in lock


def test_missing_tools_are_named_with_the_way_out(tools: Path):
    (tools / "emcc").unlink()
    (tools / "npm").unlink()
    emscripten, from_npm = (lacking.missing_tool_error(tool, asked) for tool, asked in zip(
        lacking.missing_tools("webgpu", "web_page"), ("target=webgpu", "package=web_page"), strict=True
    ))  # fmt: skip
    assert emscripten.message == (
        "target=webgpu needs emscripten, and no emcc was found on the path; every other target builds without it"
    )
    assert "apt-get install emscripten" in emscripten.hint
    assert emscripten.exit_code == 2
    assert from_npm.message == (
        "package=web_page needs npm, and no npm was found on the path; package=mlc builds without it"
    )
    assert webgpu.emcc_version() == "none"


def test_a_sweep_over_packages_and_values_names_each_folder():
    jobs = [compose.compose([*FOR_BROWSERS, f"package={package}", f"model.context_window_size={size}"], None)
            for package in ("mlc", "web_page") for size in (128, 256)]  # fmt: skip
    assert [names.name_of(job) for job in with_distinct_names(jobs)] == [
        "demo-q4f32_1-webgpu-f32-context_window_size=128",
        "demo-q4f32_1-webgpu-f32-context_window_size=256",
        "demo-q4f32_1-webgpu-f32-web_page-context_window_size=128",
        "demo-q4f32_1-webgpu-f32-web_page-context_window_size=256",
    ]


@pytest.mark.parametrize(("target", "said"), [("webgpu-f32", -1), ("cpu", 64)])
def test_a_window_is_in_the_kernels_but_not_in_what_webllm_reads(target: str, said: int):
    """WebLLM refuses a configuration with a context and a window."""
    recipe = recipe_of("quant=q4f32_1", f"target={target}")
    windowed = replace(recipe, metadata=replace(recipe.metadata, sliding_window_size=64))
    steps = {step.name: step for step in graph.build_plan([windowed]).steps.values()}
    assert steps["package"].params["metadata"]["sliding_window_size"] == said
    assert steps["lower"].params["metadata"]["sliding_window_size"] == 64


def test_generate_says_where_a_library_for_browsers_runs():
    with pytest.raises(UserError) as caught:
        check_runs(recipe_of(*FOR_BROWSERS))
    assert caught.value.message == ("generate runs libraries of cpu and cuda here; target=webgpu-f32 is of kind webgpu")
    assert "package=web_page" in caught.value.hint
    check_runs(recipe_of("target=cpu"))


def test_the_runtime_says_that_it_is_compiled_once_and_how_many_files_are(tools: Path, monkeypatch):
    """With a compiler that writes nothing: what is said while it runs is what a screen shows for two minutes."""
    from llm_build.steps import runtime
    from tests.weights.weights_line import FolderOut

    class Heard(FolderOut):
        def progress(self, done: int, total: int, unit: str = "", label: str = "") -> None:
            heard.append((done, total, unit, label))

    heard = list[tuple[int, int, str, str]]()
    monkeypatch.setattr(webgpu, "lay_out_sources", lambda tree: tree.mkdir())
    runtime.run({}, {}, Heard(tools / "out"))
    assert [(done, total, unit) for done, total, unit, _ in heard] == [
        (0, 3, "files"),
        (1, 3, "files"),
        (2, 3, "files"),
    ]
    assert [label for *_, label in heard] == [
        f"once, some 2 CPU minutes: {name}.cc" for name in ("wasm_runtime", "tvmjs_support", "webgpu_runtime")
    ]
