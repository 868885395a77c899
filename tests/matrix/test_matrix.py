"""A diagonal through families x schemes, each at least once; `python -m tools.matrix` builds them all."""

from __future__ import annotations

import json
from itertools import cycle, islice

import pytest

from llm_build import architectures
from llm_build.config.choices import find_folders
from llm_build.planner.schemes.schemes import schemes_that_quantize
from tests.conftest import ROOT, Shell
from tests.matrix.checkpoints import FAMILIES, make
from tools.matrix import END, RECORD, START, row, table

SUPPORTED = [family for family in FAMILIES if family in architectures.FAMILIES]
SCHEMES = schemes_that_quantize(find_folders())
COUNT = max(len(SUPPORTED), len(SCHEMES))
DIAGONAL = set(zip(islice(cycle(SUPPORTED), COUNT), islice(cycle(SCHEMES), COUNT), strict=True))


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    folder = tmp_path_factory.mktemp("matrix")
    return Shell(folder, folder / "store")


@pytest.mark.parametrize("family", SUPPORTED)
def test_cells(workshop: Shell, family: str):
    """One sweep for the schemes of a family: its checkpoint is read once, and workers are started once."""
    schemes = sorted(scheme for of, scheme in DIAGONAL if of == family)
    record = json.loads(RECORD.read_text())[family]
    source = make(family, workshop.folder / family)
    assert row(workshop, source, schemes) == {scheme: record[scheme] for scheme in schemes}


def test_every_family_and_scheme_is_in_the_record_and_the_readme_shows_it():
    found = json.loads(RECORD.read_text())
    assert set(found) == set(SUPPORTED) == set(architectures.FAMILIES)
    assert all(set(cells) == set(SCHEMES) for cells in found.values())
    assert START + table(found) + END in (ROOT / "README.md").read_text()
