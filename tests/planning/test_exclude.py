"""sweep.exclude: which cells a rule leaves out, and what is said of rules that cannot be."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from llm_build.app.merge import merge
from llm_build.config import compose
from llm_build.config.choices import Composed, find_folders
from llm_build.config.sweeps.exclude import apply_rules
from llm_build.core.errors import UserError


def cells(*rules: Any) -> list[Composed]:
    """Four schemes by two targets by two batch sizes, with the rules in each."""
    quants, targets, batches = ("q4f16_1", "q8f16_1", "e4m3_f16", "e4m3_e4m3_f16"), ("cpu", "webgpu"), (1, 4)
    return [
        Composed(
            {
                "model": {"max_batch_size": batch}, "quant": {"budget": None, "bits": 4.5}, "target": {},
                "sweep": {"exclude": list(rules)},
            },
            {"model": "demo", "quant": quant, "target": target}, (f"quant={quant}", f"target={target}"),
        )
        for quant, target, batch in product(quants, targets, batches)
    ]  # fmt: skip


def kept(*rules: Any) -> int:
    found = apply_rules(cells(*rules))
    assert len(found.kept) + len(found.excluded) == 16
    assert not found.idle
    return len(found.kept)


def test_every_key_of_a_rule_must_match():
    assert kept() == 16
    assert kept({"quant": "e4m3*", "target": "webgpu"}) == 12
    assert kept({"quant": "e4m3*"}) == 8
    assert kept({"quant": ["e4m3_f16", "q8*"], "target": "cpu"}) == 12
    assert kept({"quant": "e4m3*"}, {"target": "cpu", "model": "de?o"}) == 4


def test_values_match_by_what_they_are_or_how_they_are_written():
    assert kept({"model.max_batch_size": 1}) == 8
    assert kept({"model.max_batch_size": "[2-4]", "quant": "q*"}) == 12
    assert kept({"quant.budget": None, "target": "cpu"}) == 8
    assert kept({"quant.budget": "null", "target": "cpu"}) == 8
    assert kept({"quant.bits": 4.5, "target": "cpu", "model.max_batch_size": [1, 2]}) == 12


def test_a_rule_without_a_cell_is_told():
    found = apply_rules(cells({"quant": "q5*"}, {"target": "cpu"}, {"recipe": "nightly"}))
    assert (len(found.kept), found.idle) == (8, ["{quant: q5*}", "{recipe: nightly}"])


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"quants": "q4*"}, r"sweep.exclude: quants in \{quants: q4\*\} is neither a choice group nor a key; did you "
                            "mean quant?"),
        ({"quant.budge": 1}, r"quant.budge in \{quant.budge: 1\} is neither .*; did you mean quant.budget"),
        ({"x.y": 1}, r"x.y in .* is neither a choice group nor a key; allowed: model, quant, target"),
        ({}, r"sweep.exclude: \{\} is no rule; a rule is a mapping of choices or keys to patterns"),
        ("e4m3", r"sweep.exclude\[0\]: expected a mapping, got 'e4m3'"),
        ({"model": "*"}, r"sweep.exclude leaves none of 16 cells"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be(rule, message):
    with pytest.raises(UserError, match=message):
        apply_rules(cells(rule))


def test_the_cells_of_a_request_and_its_notes(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_BUILD_STORE", str(tmp_path / "store"))
    rules = '++sweep.exclude=[{quant:"q8*",target:cpu},{quant:q5*}]'
    words = [["quant=q8f16_1"], ["quant=q4f16_1"]]
    composed = [compose.compose([*each, "verify=off", rules[2:]], None) for each in words]
    request = merge(composed, find_folders())
    assert (request.names, len(request.excluded)) == (("demo-q4f16_1-cpu",), 1)
    assert request.notes == (
        "sweep.exclude: 1 of 2 cells left out",
        "warning: sweep.exclude: {quant: q5*} matches no cell",
    )
    alone = merge(composed[:1], find_folders())
    assert alone.names == ("demo-q8f16_1-cpu",), "a plain build has no combinations"


def test_a_key_that_nothing_reads_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LLM_BUILD_STORE", str(tmp_path / "store"))
    with pytest.raises(UserError, match=r"sweep.exlude \(on the command line\): unknown key; did you mean exclude\?"):
        merge([compose.compose(["sweep.exlude=[]"], None)], find_folders())
