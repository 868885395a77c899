"""What schemes cost on a text that none of them was chosen on, in a few thousand tokens; the whole of it is in
docs/how-it-works/quality.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import prose, quality
from llm_build.core.filestore import open_store
from llm_build.executors.local import LocalExecutor

SCHEMES = ["q3f16_1", "mixed_q3_q4_q6", "q4f16_1", "mixed_q4_q8", "q8f16_1"]  # e4m3's 0.1% takes more tokens than these


def test_mixed_schemes_and_eight_bits_on_another_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, rows = tmp_path / "numpy.txt", []
    text.write_text(prose.text_of("numpy"))
    words = [f"verify.text={text}", "verify.tokens=2048", "verify.window=256"]
    monkeypatch.setattr(quality, "ALL_TEXT", [])
    store = open_store(tmp_path / "store")
    with LocalExecutor(store) as executor:
        for recipe in quality.recipes(SCHEMES, words, ("rtn",)):
            row, original = quality.measure(recipe, store, executor)
            rows.append(row)
    assert [row.scheme for row in rows] == SCHEMES
    assert quality.complaints(rows, original) == []
    heights = {row.scheme: quality.height(row, rows) for row in rows if row.line == "mixed"}
    assert len(heights) == 2
    assert all(0 < height < 1 for height in heights.values()), heights
