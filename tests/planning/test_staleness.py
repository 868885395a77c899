"""What an edit makes stale, as `build plan` says it: words nothing, an expression the steps that reach it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.planning.edited import Copy, copy_of_sources

WORDS = ("target.cpu=x86-64-v2",)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    return copy_of_sources(tmp_path_factory.mktemp("edited"), *WORDS)


@pytest.fixture
def copy(original: Copy) -> Iterator[Copy]:
    """Its edits are undone in the end."""
    assert original.stale(*WORDS) == {}
    texts = {path: path.read_text() for path in (original.root / "llm_build").rglob("*.py")}
    yield original
    for path, text in texts.items():
        if path.read_text() != text:
            path.write_text(text)


def test_comments_docstrings_and_messages_make_nothing_stale(copy: Copy) -> None:
    copy.add("llm_build/steps/convert.py", "# one more remark")
    copy.edit("llm_build/steps/lower.py", '"""', '"""Once more: ')
    copy.edit("llm_build/steps/fetch.py", "pins.checkpoint is", "the recipe pins")
    copy.add("llm_build/core/errors.py", "ONE_MORE = 1")
    assert copy.stale(*WORDS) == {}


def test_an_expression_makes_the_steps_stale_that_reach_it_and_its_file_is_named(copy: Copy) -> None:
    copy.add("llm_build/steps/lower.py", "ONE_MORE = 1")
    assert copy.stale(*WORDS) == {"lower": "llm_build/steps/lower.py changed"}


def test_why_prints_the_files_behind_a_key(copy: Copy) -> None:
    files = copy.json("why", "convert", *WORDS)["files"]
    assert {"llm_build/steps/convert.py", "llm_build/architectures/llama.py"} <= files.keys()
    assert not any(file.startswith(("llm_build/lowering/", "llm_build/core/errors")) for file in files)
    assert all(digest.startswith("sha256:") for digest in files.values())
    lines = copy.run("why", "convert", *WORDS).stdout.splitlines()
    assert f"  code in the key now, {len(files)} files:" in lines
    short = files["llm_build/steps/convert.py"].partition(":")[2][:12]
    assert f"    {short}  llm_build/steps/convert.py" in lines
