"""Stored bits per weight, from shapes alone, and where `build plan` shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_build.app.merge import merge
from llm_build.app.options import BuildOptions
from llm_build.app.plan import plan, plan_document
from llm_build.architectures.weights import Parameter
from llm_build.cli import plan as plan_verb
from llm_build.cli.arguments import parse
from llm_build.config.choices import find_folders
from llm_build.config.compose import compose
from llm_build.planner.schemes.stored_bits import stored_bits
from llm_build.quant.layout import Scheme

MATRIX = Parameter("layers.0.a.weight", (64, 256), "linear")
NORM = Parameter("norm.weight", (256,), "norm")


def groups(bits: int, group_size: int, zero_point: bool = False) -> Scheme:
    return Scheme("q", "group", bits, group_size, "NK", "float16", "uint32", True, True, zero_point=zero_point)


@pytest.mark.parametrize(
    ("bits", "group_size", "expected"),
    [
        (4, 32, 4.5),  # eight in a word, and a scale for 32 weights
        (5, 32, 6.5),  # six in a word: the last of six words of a group holds two
        (5, 30, 32 / 6 + 16 / 30),  # a multiple of 32 // bits fills every word, but for the end of a row
        (8, 128, 8.125),
        (3, 40, 3.6),
    ],
)
def test_words_that_are_not_full_and_scales_count(bits: int, group_size: int, expected: float):
    width = 8 * group_size
    quantized, total = stored_bits([Parameter("a.weight", (64, width), "linear")], groups(bits, group_size))
    assert quantized == total == pytest.approx(expected)


def test_what_is_kept_counts_in_the_total():
    quantized, total = stored_bits([MATRIX, NORM], groups(4, 32))
    assert quantized == 4.5
    assert total == (4.5 * 64 * 256 + 16 * 256) / (64 * 256 + 256)
    assert stored_bits([MATRIX], groups(4, 32, zero_point=True)).total > 4.5
    assert stored_bits([MATRIX], Scheme("q0f32", "none", 0, 0, "", "float32", "", True, True)) == (None, 32.0)


def test_build_plan_shows_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LLM_BUILD_STORE", str(tmp_path / "store"))
    (tmp_path / "conf" / "quant").mkdir(parents=True)
    (tmp_path / "conf" / "quant" / "q5.yaml").write_text("# five bits\ndefaults: [q4f16_1]\nbits: 5\nname: q5\n")
    request = merge([compose(["quant=q5"], None)], find_folders())
    (row,) = plan_document(request, plan(BuildOptions(), request, lambda event: None))["recipes"]
    assert row["bits_per_weight"]["quantized"] == 6.5
    assert row["bits_per_weight"]["total"] == pytest.approx(6.5, abs=0.05)
    plan_verb.show(parse(["plan", "quant=q5"]))
    assert "weights  6.50 bits per weight where quantized, 6.5" in capsys.readouterr().out
