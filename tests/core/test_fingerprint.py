"""Which edits change the fingerprint of a step's code, and which do not."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

import pytest

from llm_build.core import fingerprint, meaning
from llm_build.core.filestore import FileStore
from llm_build.core.fingerprint import FileSources, installed_versions
from llm_build.core.meaning import read_module
from tests.core.memory_store import MemoryStore

TREE = {
    "house/__init__.py": "",
    "house/steps/__init__.py": "# steps\n",
    "house/steps/lower.py": """
from __future__ import annotations
from typing import TYPE_CHECKING
import json
from house.passes import order
from .. import tables
if TYPE_CHECKING:
    from house import only_for_types
def run(params, inputs, out):
    from house.deep.inner import thing
    import importlib
    importlib.import_module(params["module"])
""",
    "house/passes/__init__.py": "from house.passes.order import ORDER\n",
    "house/passes/order.py": "ORDER = []\n",
    "house/deep/inner.py": "from .. import sibling\nfrom . import beside\n",
    "house/deep/beside.py": "",
    "house/sibling.py": "",
    "house/tables.py": "FAMILIES = {'llama': 'house.llama'}\n",
    "house/only_for_types.py": "",
    "house/llama.py": "from house import rope\n",
    "house/rope.py": "",
    "house/neox.py": "",
}
REACHED = {
    "house/__init__.py", "house/steps/__init__.py", "house/steps/lower.py", "house/passes/__init__.py",
    "house/passes/order.py", "house/deep/inner.py", "house/deep/beside.py", "house/sibling.py", "house/tables.py",
}  # fmt: skip
FUNCTION = "house.steps.lower:run"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setattr("llm_build.core.memo.RACY_NS", -(10**18))
    return tmp_path


def code(*more: str) -> tuple[str, dict[str, str]]:
    return FileSources(MemoryStore()).code(FUNCTION, more)


def test_exactly_the_reachable_modules(tree: Path) -> None:
    assert code()[1].keys() == REACHED
    assert code("house.llama")[1].keys() == REACHED | {"house/llama.py", "house/rope.py"}


def test_a_statement_changes_it_where_it_is_reached(tree: Path) -> None:
    before, llama = code()[0], code("house.llama")[0]
    for name, text in TREE.items():
        (tree / name).write_text(text + "ONE_MORE = 1\n")
        assert (code()[0] != before) == (name in REACHED), name
        assert (code("house.llama")[0] != llama) == (name in REACHED | {"house/llama.py", "house/rope.py"}), name
        (tree / name).write_text(text)
    assert code()[0] == before


def test_a_comment_changes_nothing(tree: Path) -> None:
    before = code("house.llama")
    for name, text in TREE.items():
        (tree / name).write_text("# a comment\n" + text)
    assert code("house.llama") == before


def test_modules_that_hold_words_alone_do_not_count_but_what_they_import_does(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "WORDS_ONLY", {"house.deep.inner"})
    assert code()[1].keys() == REACHED - {"house/deep/inner.py"}


def test_a_file_that_does_not_parse_counts_by_its_bytes(tree: Path) -> None:
    (tree / "house/tables.py").write_text("def f(:")
    before = code()[0]
    (tree / "house/tables.py").write_text("def f(:  # broken")
    assert code()[0] != before


def test_where_the_tree_lies_does_not_matter(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    before = code()[0]
    moved = tmp_path_factory.mktemp("elsewhere")
    (tree / "house").rename(moved / "house")
    sys.path[0] = str(moved)
    assert code()[0] == before


def test_a_second_run_parses_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    first = FileSources(store)
    before = first.code(FUNCTION, ())
    first.save()
    monkeypatch.setattr(meaning, "read_module", None)
    second = FileSources(store)
    monkeypatch.setattr(fingerprint, "digest_of_names", lambda table: before[0] if table == before[1] else "")
    assert second.code(FUNCTION, ()) == before


def test_what_the_cache_knows_is_checked_by_stat(tree: Path) -> None:
    store = MemoryStore()
    first = FileSources(store)
    before = first.code(FUNCTION, ())[0]
    first.save()
    (tree / "house/tables.py").write_text(TREE["house/tables.py"] + "A = 1")
    assert FileSources(store).code(FUNCTION, ())[0] != before


def test_a_broken_cache_is_no_matter(tree: Path, tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    store.start()
    before = FileSources(store).code(FUNCTION, ())
    (tmp_path / "store/cache/meanings.json").write_text('{"torn')
    assert FileSources(store).code(FUNCTION, ()) == before
    store.stop()


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import a.b, c as d", ["a.b", "c"]),
        ("from a.b import c, d", ["a.b", "a.b.c", "a.b.d"]),
        ("from . import x", ["pkg", "pkg.x"]),
        ("from .x import *", ["pkg.x"]),
        ("from ..y import z", ["y", "y.z"]),
        ("class A:\n  def f(self):\n    try:\n      import q\n    except: pass", ["q"]),
        ("if typing.TYPE_CHECKING:\n  import a\nelse:\n  import b", ["b"]),
        ("import a; def f(:", []),
    ],
)
def test_imports(source: str, found: list[str]) -> None:
    assert read_module(source.encode(), "pkg.module", False)[1] == found


def test_a_package_imports_from_itself() -> None:
    assert read_module(b"from . import x", "pkg", True)[1] == ["pkg", "pkg.x"]


def test_versions_are_those_of_the_metadata() -> None:
    found = installed_versions()
    for name in ("blake3", "pytest", "hypothesis", "omegaconf", "typing_extensions"):
        assert found[name.replace("_", "-")] == importlib.metadata.version(name)
    assert FileSources(MemoryStore()).tool("Typing.Extensions") == found["typing-extensions"]
    assert FileSources(MemoryStore()).tool("no-such-thing") == "absent"
