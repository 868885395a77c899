"""The demo in headless Chromium: unmodified WebLLM from npm says what the CPU's library says, and so does the page. And
every WGSL kernel that ships is accepted by Dawn, below the limits that WebLLM asks a device for.

One file, as all of it needs the demo built for browsers, and each file of tests may run in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser.conftest import HERE, node, served
from tests.conftest import ROOT, Shell

pytestmark = pytest.mark.timeout(1200)  # the first builds the demo, with a runtime
PROMPT, TOKENS = "The function returns", 16
PAGE = "demo-q4f32_1-webgpu-f32-web_page"
SCREENSHOT = "LLM_BUILD_SCREENSHOT"  # where the page's picture goes, if it is to be kept
NO_WEBGPU = ("--disable-features=WebGPU,WebGPUService", "--disable-gpu")
SWIFTSHADER = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader")
MOST_THREADS, MOST_BUFFERS, MOST_SHARED_BYTES = 256, 10, 32 << 10
BYTES = {"f16": 2, "f32": 4, "i32": 4, "u32": 4}


@pytest.fixture(scope="session")
def expected(built: Shell) -> str:
    """Greedy text of the CPU's library, with the same quantized weights."""
    words = ["generate", PROMPT, "--temperature", "0", "--max-tokens", str(TOKENS), "quant=q4f32_1", "verify=off"]
    said = built.run(*words).stdout.rstrip("\n")
    assert said.startswith(PROMPT)
    assert len(said) > len(PROMPT) + 20
    return said[len(PROMPT) :]


@pytest.fixture
def site(built: Shell, tmp_path: Path) -> Iterator[str]:
    """A server with WebLLM and the artifact where WebLLM looks for it."""
    folder = built.folder / "dist" / "demo-q4f32_1-webgpu-f32"
    (tmp_path / "model" / "resolve").mkdir(parents=True)
    (tmp_path / "model" / "resolve" / "main").symlink_to(folder)
    shutil.copy(HERE / "node_modules/@mlc-ai/web-llm/lib/index.js", tmp_path / "web-llm.js")
    (tmp_path / "empty.html").write_text('<!doctype html><title>test</title><link rel="icon" href="data:,">')
    with served(tmp_path) as address:
        yield address


def test_webllm_says_what_the_cpu_says(site: str, expected: str):
    found = node("chat.mjs", site, "demo-q4f32_1-webgpu-f32.wasm", PROMPT, str(TOKENS))
    assert found["text"].rstrip("\n") == expected
    assert found["usage"]["completion_tokens"] == TOKENS
    assert found["sampled"]  # with a penalty, a bias and top-p
    before, after = found["memory_bytes"]
    assert before == after, "the module's memory grew: targets/webgpu.py counts too little"


def test_page_answers(built: Shell, expected: str, tmp_path: Path):
    picture = Path(os.environ.get(SCREENSHOT, tmp_path / "page.png")).absolute()
    with served(built.folder / "dist" / PAGE) as address:
        words = (f"{address}/index.html?temperature=0&max_tokens={TOKENS}", PROMPT, str(picture))
        found = node("page.mjs", *words)
    assert found["title"] == PAGE
    assert found["user"] == PROMPT
    assert found["answer"].rstrip("\n") == expected
    assert "tokens/s" in found["speed"]
    assert found["hosts"] == [address.removeprefix("http://")], "the page asked another server"
    assert picture.stat().st_size > 10_000


def test_page_says_what_the_browser_lacks(built: Shell):
    dist = built.folder / "dist"
    with served(dist) as address:
        without = node("refusal.mjs", f"{address}/{PAGE}/", *NO_WEBGPU)
        half = node("refusal.mjs", f"{address}/demo-q4f16_1-webgpu-web_page/", *SWIFTSHADER)
    assert "WebGPU" in without["failure"]
    assert "needs shader-f16" in half["failure"]
    assert "target=webgpu-f32" in half["failure"]


def test_page_is_a_whole_artifact(built: Shell):
    folder = built.folder / "dist" / PAGE
    page = json.loads((folder / "page.json").read_text())
    artifact = folder / "resolve" / page["revision"]
    assert (artifact / page["library"]).read_bytes()[:4] == b"\0asm"
    assert {f.name for f in artifact.iterdir()} >= {"mlc-chat-config.json", "tensor-cache.json", "tokenizer.json"}
    assert page["weights_bytes"] == sum(f.stat().st_size for f in artifact.glob("params_shard_*.bin"))
    assert page["features"] == []
    assert "Apache License" in (folder / "web-llm.LICENSE.txt").read_text()
    from_npm = HERE / "node_modules" / "@mlc-ai" / "web-llm" / "lib" / "index.js"
    assert (folder / "web-llm.js").read_bytes() == from_npm.read_bytes()
    shipped = ROOT / "builder" / "web_page"
    for file in shipped.iterdir():
        assert (folder / file.name).read_bytes() == file.read_bytes()


def shared_bytes(code: str) -> int:
    arrays = re.findall(r"var<workgroup>\s+\w+\s*:\s*array<(\w+),\s*(\d+)>", code)
    assert len(arrays) == code.count("var<workgroup>")
    return sum(BYTES[kind] * int(length) for kind, length in arrays)


@pytest.mark.parametrize(("name", "features"), [("q4f32_1-webgpu-f32", ()), ("q4f16_1-webgpu", ("shader-f16",))])
def test_kernels_are_valid(built: Shell, name: str, features: tuple[str, ...]):
    library = built.folder / "dist" / f"demo-{name}" / f"demo-{name}.wasm"
    found = node("kernels.mjs", str(library), *features)
    kernels = [kernel["code"] for kernel in found["kernels"]]
    assert len(kernels) > 20
    assert not [kernel for kernel in found["kernels"] if kernel["error"]]
    assert any("enable f16;" in code for code in kernels) == bool(features)
    for code in kernels:
        (sizes,) = re.findall(r"@workgroup_size\((\d+), (\d+), (\d+)\)", code)
        assert int(sizes[0]) * int(sizes[1]) * int(sizes[2]) <= MOST_THREADS, code
        assert code.count("var<storage") <= MOST_BUFFERS, code
        assert shared_bytes(code) <= MOST_SHARED_BYTES, code


def test_a_wrong_kernel_is_rejected(built: Shell, tmp_path: Path):
    """The check before can fail: one letter of one kernel is changed."""
    folder = built.folder / "dist" / "demo-q4f32_1-webgpu-f32"
    data = (folder / f"{folder.name}.wasm").read_bytes()
    assert b"i32(threadIdx.x)" in data
    (tmp_path / "wrong.wasm").write_bytes(data.replace(b"i32(threadIdx.x)", b"i32(threadIdx.q)", 1))
    found = node("kernels.mjs", str(tmp_path / "wrong.wasm"))
    (wrong,) = [kernel["error"] for kernel in found["kernels"] if kernel["error"]]
    assert "invalid vector swizzle" in wrong
