"""The list of slow tests names tests that exist."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tests.slow import LONG, SLOW, entry_of, unit_of

pytest_plugins = ["pytester"]


def test_every_entry_begins_a_test_that_exists():
    for start in (*SLOW, *LONG):
        file, _, name = start.partition("::")
        path = ROOT / file
        assert path.exists(), start
        if name:
            assert re.search(rf"^def {name.partition('[')[0]}", path.read_text(), re.MULTILINE), start


def test_an_entry_stands_for_all_tests_that_begin_with_it():
    cell = "tests/ranks/test_cells.py::test_ranks_give_the_logits_of_one[llama-q0f32]"
    assert entry_of(cell) == "tests/ranks/test_cells.py"
    assert entry_of("tests/ranks/test_lowering.py::test_x") == ""


def test_files_that_share_what_they_build_are_one_unit():
    assert unit_of("tests/targets/test_apps.py::test_x[a]") == unit_of("tests/targets/test_apple.py::test_y")
    assert unit_of("tests/e2e/test_kill.py::test_x[0]") == "tests/e2e/test_kill.py"


def test_what_takes_long_begins_first(pytester: pytest.Pytester):
    """In two processes, whose first tests are those of the longest two files, though another has more tests."""
    pytester.makeconftest(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\nimport tests.slow\n"
        "tests.slow.SLOW = {'test_c.py': 30, 'test_b.py::test_last': 20, 'test_b.py::test_0': 15}\n"
        "from tests.conftest import pytest_collection_modifyitems, pytest_xdist_make_scheduler\n"
    )
    many = "".join(f"def test_{number}(): pass\n" for number in range(9))
    pytester.makepyfile(test_a=many, test_b=many + "def test_last(): pass\n", test_c="def test_only(): pass\n")
    out = pytester.runpytest_subprocess("-n", "2", "--dist", "loadfile", "-v", "-p", "no:cacheprovider").outlines
    begun = [line.split()[2] for line in out if "PASSED" in line]
    first = {line.split()[0]: line.split()[-1] for line in reversed(out) if line.startswith("[gw")}
    assert len(begun) == 20
    assert {name.partition("::")[0] for name in first.values()} == {"test_b.py", "test_c.py"}
