"""No text says "1 steps": whatever is counted in a sentence goes through one function."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from llm_build.core.units import count_of
from tests.conftest import ROOT

ROOMS = ("app", "cli", "config", "provenance", "report")
NOUNS = re.compile(
    r" (?:more |other )?(steps|cells|files|weights|results|builds|cores|differences|tokens|scales|parameters|parts"
    r"|ranks|sequences|shards|records|blobs|rows|GPUs|folders|choices|keys|faults|warnings|lines|passes)\b"
)


@pytest.mark.parametrize(
    ("count", "noun", "said"),
    [(0, "step", "0 steps"), (1, "step", "1 step"), (2, "step", "2 steps"), (1, "bias", "1 bias"),
     (2, "bias", "2 biases"), (2, "pass", "2 passes"), (3, "more step", "3 more steps"), (2, "switch", "2 switches")],
)  # fmt: skip
def test_one_and_many(count: int, noun: str, said: str):
    assert count_of(count, noun) == said


def plural_texts(file: Path) -> list[str]:
    """f-strings of a file that put a plural behind a value themselves."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                counted = isinstance(value, ast.FormattedValue) and value.format_spec is None
                if counted and isinstance(text, ast.Constant) and NOUNS.match(str(text.value)):
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)}")
    return found


def test_no_text_puts_a_plural_behind_a_number_itself():
    files = [file for room in ROOMS for file in (ROOT / "builder" / room).rglob("*.py")]
    assert not [text for file in files for text in plural_texts(file)]


def test_the_rule_is_able_to_find_one(tmp_path: Path):
    file = ROOT / "builder" / "core" / "units.py"
    assert not plural_texts(file)
    probe = tmp_path / "probe.py"
    probe.write_text('text = f"{count} steps ran"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.planning.test_counts_of_things.ROOT", tmp_path)
        assert plural_texts(probe) == ["probe.py:1: f'{count} steps ran'"]
