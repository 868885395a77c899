"""The list of slow tests names tests that exist."""

from __future__ import annotations

import re

from tests.conftest import ROOT
from tests.slow import SLOW, seconds_of


def test_every_entry_begins_a_test_that_exists():
    for start in SLOW:
        file, _, name = start.partition("::")
        path = ROOT / file
        assert path.exists(), start
        if name:
            assert re.search(rf"^def {name.partition('[')[0]}", path.read_text(), re.MULTILINE), start


def test_an_entry_stands_for_all_tests_that_begin_with_it():
    assert seconds_of("tests/ranks/test_cells.py::test_ranks_give_the_logits_of_one[llama-q0f32]") == 344
    assert seconds_of("tests/ranks/test_lowering.py::test_x") == 0
