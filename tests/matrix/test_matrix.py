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
from tools.matrix import END, RECORD, START, build, table

SUPPORTED = [family for family in FAMILIES if family in architectures.FAMILIES]
SCHEMES = schemes_that_quantize(find_folders())
COUNT = max(len(SUPPORTED), len(SCHEMES))
DIAGONAL = sorted(set(zip(islice(cycle(SUPPORTED), COUNT), islice(cycle(SCHEMES), COUNT), strict=True)))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], str]:
    """(family, scheme) -> what came of it. One sweep, whose workers load torch and TVM once."""
    folder = tmp_path_factory.mktemp("matrix")
    cells: dict[str, list[str]] = {}
    for family, scheme in DIAGONAL:
        cells.setdefault(family, []).append(scheme)
    sources = {family: str(make(family, folder / family)) for family in cells}
    found = build(Shell(folder, folder / "store"), {sources[family]: schemes for family, schemes in cells.items()})
    return {(family, scheme): found[sources[family], scheme] for family, scheme in DIAGONAL}


@pytest.mark.parametrize(("family", "scheme"), DIAGONAL)
def test_cell(built: dict[tuple[str, str], str], family: str, scheme: str) -> None:
    assert built[family, scheme] == json.loads(RECORD.read_text())[family][scheme]


def test_every_family_and_scheme_is_in_the_record_and_the_readme_shows_it():
    found = json.loads(RECORD.read_text())
    assert set(found) == set(SUPPORTED) == set(architectures.FAMILIES)
    assert all(set(cells) == set(SCHEMES) for cells in found.values())
    assert START + table(found) + END in (ROOT / "README.md").read_text()
