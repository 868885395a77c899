"""Which edits of a Python file change what it means, and which do not."""

from __future__ import annotations

import ast

import pytest

from llm_build.core.meaning import meaning_of, read_module

SOURCE = '''
"""A module."""
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from a import b

class A:
    """A class."""
    size: int = -3
    ratio = 1.5e300

    async def grow(self, by: int = 1, *rest: str, **more: bytes) -> bool:
        """A method."""
        if by < 0 and not rest:
            raise ValueError(f"by is {by!r:>{self.size}}, which is " "too small", by, hint="take more")
        assert by, "by is 0"
        out.warn(f"{by} is large")
        out.progress(1, 2, "tensors", label=f"{by}")
        match by:
            case 1 | 2:
                return True
            case [first, *_]:
                pass
        return [f"x{each:02d}" f"y" for each in rest if each] == ["x", "é\\u2028", b"z", 10**3, 1j, None, ...]
'''
SAME = [
    ('"""A module."""', '"""Another module: it grew."""'),
    ('"""A module."""', ""),
    ('    """A class."""\n', ""),
    ('        """A method."""\n', '        # says nothing\n        """A method of a class."""\n'),
    ("    from a import b", "    from a import b, c"),
    ("by < 0 and not rest", "(by < 0\n            and not rest)"),
    ('"too small"', '"far too small"'),
    (", which is ", " "),
    ("{by!r:>{self.size}}", "{by:4}"),
    ('hint="take more"', 'hint="take many more"'),
    ('"by is 0"', '"by is nothing"'),
    ("is large", "is very large"),
    ('"tensors"', '"parts"'),
    ('label=f"{by}"', 'label=f"by {by}"'),
    ('f"x{each:02d}" f"y"', 'f"x{each:02d}y"'),
    ('["x", ', "['x', "),
    ("10**3", "10 ** 0x3"),
]
OTHER = [
    ("-3", "-4"),
    ("1.5e300", "1.5e301"),
    ("by: int = 1", "by: int = 2"),
    ("by < 0", "by <= 0"),
    ("ValueError", "TypeError"),
    ("{by!r:>{self.size}}", "{rest!r}"),
    ("assert by,", "assert by + 1,"),
    ("out.progress(1, 2", "out.progress(2, 2"),
    ("out.warn(f", "log.warn(f"),
    ('f"x{each:02d}"', 'f"X{each:02d}"'),
    ("{each:02d}", "{each:03d}"),
    ('["x", ', '["X", '),
    ('b"z"', '"z"'),
    ("1 | 2", "1 | 3"),
    ("async def", "def"),
    ("return True", "return 1"),
]


def meaning(source: str) -> str:
    return meaning_of(ast.parse(source))


@pytest.mark.parametrize(("old", "new"), SAME)
def test_words_and_layout_mean_nothing(old: str, new: str) -> None:
    assert old in SOURCE
    assert meaning(SOURCE.replace(old, new)) == meaning(SOURCE)


@pytest.mark.parametrize(("old", "new"), OTHER)
def test_what_is_computed_counts(old: str, new: str) -> None:
    assert old in SOURCE
    assert meaning(SOURCE.replace(old, new)) != meaning(SOURCE)


def test_every_python_gives_one_digest() -> None:
    """Taken under 3.10 to 3.13, which agreed, as they do on every file of this repository."""
    assert meaning(SOURCE) == "sha256:4c7a66d802e099370a35b4ead7dd98e8a6601b5b146b13434350b8aa5c14148c"


def test_what_does_not_parse_counts_by_its_bytes() -> None:
    assert read_module(b"def f(:", "a", False) != read_module(b"def  f(:", "a", False)
    assert read_module(b"def f(:", "a", False)[1] == []
