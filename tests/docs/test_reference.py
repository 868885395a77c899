"""The reference is what the code says."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.conftest import ROOT
from tools import reference

VARIABLE = re.compile(r"LLM_BUILD_[A-Z_]+")
READERS = ("builder", "tests", "tools", "benchmarks", ".ci")


@pytest.mark.parametrize("page", reference.PAGE_OF)
def test_generated_pages_are_up_to_date(page: str):
    text = reference.PAGE_OF[page]()
    assert (reference.PAGES / page).read_text("utf-8") == text, "python -m tools.reference"


def test_every_key_says_what_it_means():
    """By its comment in conf/, or beside its field in the schema."""
    silent = [
        key.path
        for section in reference.sections()
        for key in reference.keys_of(section, section.capitalize())
        if not key.meaning
    ]
    assert not silent


def test_every_key_of_the_configuration_is_in_the_reference():
    page = (reference.PAGES / "configuration.md").read_text("utf-8")
    missing = [
        f"{section}.{key}"
        for section, keys in reference.sections().items()
        for key in keys
        if f"`{section}.{key}`" not in page
    ]
    for file in (ROOT / "conf").glob("*/*.yaml"):
        if file.parent.name not in ("hydra", "model"):
            keys = [f"{file.parent.name}.{key}" for key in yaml.safe_load(file.read_text("utf-8")) if key != "defaults"]
            missing += [key for key in keys if f"`{key}`" not in page]
    assert not missing


def test_every_choice_says_what_it_is():
    page = (reference.PAGES / "configuration.md").read_text("utf-8")
    assert not re.findall(r"^\| `[\w./-]+` \|  \|$", page, flags=re.M)


def test_the_table_of_variables_is_that_of_the_code():
    used = {
        variable
        for folder in READERS
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".py", "") and file.is_file() and "node_modules" not in file.parts
        for variable in VARIABLE.findall(file.read_text("utf-8", errors="ignore"))
    }
    page = (reference.PAGES / "environment.md").read_text("utf-8")
    assert set(VARIABLE.findall(page)) == used - {"LLM_BUILD_"}
