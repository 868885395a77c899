"""Collect the English prose of CPython's standard library and split it into train, validation and held-out text.

    python training/prepare.py OUT_FOLDER

Four sources, all of them part of the running interpreter: the documentation topics of pydoc, the docstrings and the
prose-like comments of every standard library module (read with `ast`, never imported), and the docstrings compiled into
the C modules of C_MODULES. Needs no package. One document is one topic, one source file or one C module.
Writes train.txt, validation.txt, heldout.txt, calibration.txt (a part of train.txt) and prepare.json (Python version,
byte counts, sha256).
"""

from __future__ import annotations

import ast
import gc
import hashlib
import importlib
import json
import platform
import random
import re
import sys
import sysconfig
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SEED = 20251122
HELDOUT_BYTES = 80_000
VALIDATION_BYTES = 80_000
CALIBRATION_BYTES = 100_000  # of the training text, shipped for quant.method=gptq
MAX_SPLIT_DOCUMENT_BYTES = 12_000  # larger documents stay in train: the other splits should hold many subjects
MIN_SPLIT_DOCUMENT_BYTES = 1_200
OVERLAP_WORDS = 10  # no run of this many words of validation or held-out text occurs in train
DUPLICATE_WORDS = 6  # paragraphs are compared by their runs of this many words
DUPLICATE_SHARE = 0.6
MIN_COMMENT_WORDS = 9  # shorter ones say little without their code
DOCUMENT_END = "\f\n"  # a form feed parts documents in the text files; the trainer turns it into </s><s>

# Compiled modules with docstrings of their own that a CPython on Linux has. The walk skips one that is missing.
C_MODULES = (
    "builtins", "_abc", "_asyncio", "_ast", "_bisect", "_blake2", "_bz2", "_codecs", "_collections",
    "_contextvars", "_csv", "_ctypes", "_curses", "_datetime", "_decimal", "_elementtree", "_functools",
    "_hashlib", "_heapq", "_imp", "_io", "_json", "_locale", "_lsprof", "_lzma", "_md5", "_multiprocessing",
    "_operator", "_pickle", "_posixsubprocess", "_queue", "_random", "_sha1", "_sha256", "_sha3", "_sha512",
    "_signal", "_socket", "_sqlite3", "_sre", "_ssl", "_stat", "_statistics", "_string", "_struct",
    "_symtable", "_thread", "_tkinter", "_tokenize", "_tracemalloc", "_typing", "_uuid", "_warnings",
    "_weakref", "_zoneinfo", "array", "atexit", "audioop", "binascii", "cmath", "errno", "faulthandler",
    "fcntl", "gc", "grp", "itertools", "marshal", "math", "mmap", "nis", "ossaudiodev", "posix", "pwd",
    "pyexpat", "readline", "resource", "select", "spwd", "sys", "syslog", "termios", "time", "unicodedata",
    "zlib",
)  # fmt: skip

SKIPPED_FOLDERS = frozenset({"site-packages", "__pycache__", "lib-dynload", "data", "encodings", "turtledemo"})

PLAIN_PUNCTUATION = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "--", "…": "...", "•": "*"})

LITTLE_WORDS = """
    a all also an and any are as at be because been but by can cannot do does each for from given has have if
    in into is it its may must no not of on one only or other should so some such than that the their them
    then there these they this to use used using was we when where which will with would you
"""
STOP_WORDS = frozenset(LITTLE_WORDS.split())
LEGAL = re.compile(
    r"copyright|licen[cs]e|warrant(y|ies)|all rights reserved|hereby granted|merchantability|public domain|"
    r"written by|contributed by|@|https?://|www\.|\bvim?:|coding[:=]|-\*-|pylint|noqa|type: ignore",
    re.IGNORECASE,
)
BULLET = re.compile(r"^\s*(?:[-*+o]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+")
COMMENT = re.compile(r"(\s*)#+:? ?(.*)$")
RULE_LINE = re.compile(r"^[\s=*#~^+_.|-]*$")
WORD = re.compile(r"[A-Za-z][a-z]+(?:'[a-z]+)?|\b[aAI]\b")
WORDS = re.compile(r"[a-z0-9']+")
ROLE = re.compile(r":[a-z]+(?::[a-z]+)?:`~?([^`<]+)(?:\s*<[^>]*>)?`")
SIGNATURE = re.compile(r"^[\w.]+\([^)]*\)(?:\s*->\s*[^.]{1,60})?(?:\s+--?\s+|:\s+|\s*\n|$)")


@dataclass(frozen=True)
class Document:
    """`name` says where the text comes from; `paragraphs` hold no line breaks."""

    name: str
    paragraphs: tuple[str, ...]

    @property
    def text(self) -> str:
        return "\n\n".join(self.paragraphs) + "\n"

    @property
    def n_bytes(self) -> int:
        return len(self.text.encode())


# --- sources -------------------------------------------------------------------------------------------------------


def topic_blocks(stdlib: Path) -> Iterator[tuple[str, list[str]]]:
    """Every pydoc topic, as (name, [text])."""
    tree = ast.parse((stdlib / "pydoc_data" / "topics.py").read_bytes())
    tables = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    for name, text in sorted(ast.literal_eval(tables[0]).items()):
        yield f"topic/{name}", [text]


def source_blocks(stdlib: Path) -> Iterator[tuple[str, list[str]]]:
    """The docstrings of every source file in file order, then its comments."""
    for path in sorted(stdlib.rglob("*.py")):
        relative = path.relative_to(stdlib)
        if SKIPPED_FOLDERS & set(relative.parts) or relative.parts[0].startswith("config-"):
            continue
        try:
            with tokenize.open(path) as file:
                source = file.read()
            nodes = list(ast.walk(ast.parse(source)))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue  # the test suite carries files that are broken on purpose
        yield f"source/{relative.as_posix()}", docstrings(nodes) + comments(source, nodes)


def docstrings(nodes: list[ast.AST]) -> list[str]:
    """Cleaned docstrings of the module and everything in it, by line."""
    found = []
    for node in nodes:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                found.append((node.body[0].lineno, text))
    return [text for _, text in sorted(found)]


def comments(source: str, nodes: list[ast.AST]) -> list[str]:
    """Blocks of whole-line comments of one column, outside string literals."""
    strings = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    quoted = {line for node in strings for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)}
    blocks: list[list[str]] = []
    last = (-2, -1)  # line and column of the last comment
    for line, text in enumerate(source.split("\n"), start=1):
        match = COMMENT.match(text)
        if not match or line in quoted:
            continue
        column = match.end(1)
        if (line - 1, column) != last:
            blocks.append([])
        blocks[-1].append(match[2])
        last = (line, column)
    texts = ["\n".join(lines) for lines in blocks]
    return [text for text in texts if len(text.split()) >= MIN_COMMENT_WORDS]


def c_blocks() -> Iterator[tuple[str, list[str]]]:
    """Docstrings compiled into C_MODULES: module, functions, classes, methods; by name."""
    for name in C_MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        texts = [module.__doc__ or ""]
        for attribute in sorted(vars(module)):
            value = vars(module)[attribute]
            if not (isinstance(value, type) or callable(value)):
                continue
            texts.append(own_doc(value))
            if isinstance(value, type):
                texts.extend(own_doc(vars(value)[member]) for member in sorted(vars(value)) if member != "__doc__")
        yield f"c/{name}", [text for text in texts if text]


def own_doc(value: object) -> str:
    """The docstring of a class or callable; plain values only have their type's."""
    text = type.__dict__["__doc__"].__get__(value) if isinstance(value, type) else getattr(value, "__doc__", "")
    return text if isinstance(text, str) and text != type(value).__doc__ else ""


# --- cleaning ------------------------------------------------------------------------------------------------------


def paragraphs_of(block: str) -> Iterator[str]:
    """The prose paragraphs of one block, each on one line."""
    block = block.translate(PLAIN_PUNCTUATION).expandtabs().replace("\r", "")
    block = re.sub(r"\n\s*\n", "\n\n", ROLE.sub(r"\1", block))
    for chunk in block.split("\n\n"):
        if ">>>" in chunk:
            continue
        for lines in bullets_apart([line for line in chunk.split("\n") if not RULE_LINE.match(line)]):
            if any(re.search(r"\S {3,}\S", line) for line in lines[1:]):
                continue  # a table
            text = re.sub(r"\s+", " ", " ".join(lines)).strip()
            text = re.sub(r"(?<!\w)\*{1,2}(\w[^*]*?\w|\w)\*{1,2}(?!\w)|^\[\d+\] ", lambda m: m[1] or "", text)
            text = re.sub(r'(?<!\w)"([\w.]+(?:\(\))?)"(?!\w)', r"\1", text)
            text = re.sub(r"``([^`]+)``|`([^`']+)[`']", lambda m: m[1] or m[2], text)
            text = SIGNATURE.sub("", text).strip()
            if is_prose(text):
                yield text


def bullets_apart(lines: list[str]) -> Iterator[list[str]]:
    """The lines of a chunk, cut before every bullet or number."""
    group: list[str] = []
    for line in lines:
        if BULLET.match(line) and group:
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def is_prose(text: str) -> bool:
    """Mostly plain words with enough of the little words that hold English sentences together."""
    if not text.isascii() or LEGAL.search(text):
        return False
    pieces = text.split()
    words = WORD.findall(text)
    if len(pieces) < 5 or len(words) < 0.8 * len(pieces):
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    little = sum(word.lower() in STOP_WORDS for word in words)
    code = len(re.findall(r"[={}\[\]<>|\\%$&;]|\(self", text))
    return letters >= 0.83 * len(text) and little >= 0.2 * len(words) and code <= len(pieces) / 12


def word_runs(text: str, length: int) -> list[str]:
    """All runs of `length` lower-case words; the whole text where it is shorter."""
    words = WORDS.findall(text.lower())
    return [" ".join(words[i : i + length]) for i in range(max(1, len(words) - length + 1))]


def without_duplicates(documents: list[Document]) -> list[Document]:
    """Drop each paragraph most of whose word runs were seen before, in any document."""
    seen: set[str] = set()
    kept = []
    for document in documents:
        paragraphs = []
        for paragraph in document.paragraphs:
            runs = word_runs(paragraph, DUPLICATE_WORDS)
            if sum(run in seen for run in runs) < DUPLICATE_SHARE * len(runs):
                paragraphs.append(paragraph)
            seen.update(runs)
        if paragraphs:
            kept.append(Document(document.name, tuple(paragraphs)))
    return kept


# --- split ---------------------------------------------------------------------------------------------------------


def split(documents: list[Document]) -> dict[str, list[Document]]:
    """Whole documents to each split, by a shuffle with SEED; then the small splits lose what shares a word run."""
    order = [
        document
        for document in documents
        if MIN_SPLIT_DOCUMENT_BYTES <= document.n_bytes <= MAX_SPLIT_DOCUMENT_BYTES and "test" not in document.name
    ]
    random.Random(SEED).shuffle(order)
    taken: dict[str, list[Document]] = {}
    for name, limit in (("heldout", HELDOUT_BYTES), ("validation", VALIDATION_BYTES)):
        taken[name] = []
        while sum(document.n_bytes for document in taken[name]) < limit:
            taken[name].append(order.pop())
    apart = {document.name for group in taken.values() for document in group}
    train = [document for document in documents if document.name not in apart]
    seen = runs_of(train)
    result = {"train": train}
    for name in ("validation", "heldout"):
        result[name] = [cut for document in taken[name] if (cut := unseen_part(document, seen)).paragraphs]
        seen |= runs_of(result[name])
    return result


def runs_of(documents: list[Document]) -> set[str]:
    """All word runs of OVERLAP_WORDS in the documents."""
    return {run for document in documents for text in document.paragraphs for run in word_runs(text, OVERLAP_WORDS)}


def unseen_part(document: Document, seen: set[str]) -> Document:
    """The paragraphs that share no run of OVERLAP_WORDS words with `seen`."""
    kept = tuple(text for text in document.paragraphs if seen.isdisjoint(word_runs(text, OVERLAP_WORDS)))
    return Document(document.name, kept)


# --- main ----------------------------------------------------------------------------------------------------------


def collect() -> list[Document]:
    """All documents, cleaned and without near-duplicates: topics first, so that they win over copies elsewhere."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    blocks = [*topic_blocks(stdlib), *c_blocks(), *source_blocks(stdlib)]
    documents = [Document(name, tuple(p for text in texts for p in paragraphs_of(text))) for name, texts in blocks]
    return without_duplicates(documents)


def texts(parts: dict[str, list[Document]]) -> dict[str, str]:
    """The texts by name; train is shuffled, the held-out and the calibration text are plain, without document marks."""
    random.Random(SEED).shuffle(parts["train"])
    joined = {name: DOCUMENT_END.join(document.text for document in group) for name, group in parts.items()}
    calibration = calibration_text(joined["train"])
    return joined | {"heldout": joined["heldout"].replace(DOCUMENT_END, "\n"), "calibration": calibration}


def calibration_text(train: str) -> str:
    """The first documents of the training text that are no larger than those of the held-out text, plain like it."""
    chosen: list[str] = []
    for document in train.split(DOCUMENT_END):
        if sum(map(len, chosen)) >= CALIBRATION_BYTES:
            break
        if len(document) <= MAX_SPLIT_DOCUMENT_BYTES:
            chosen.append(document)
    return "\n".join(chosen)


def main(out: Path) -> None:
    """Write the texts and their record into `out`."""
    gc.disable()  # syntax trees hold no cycles worth collecting, and looking for them takes 40 % of the time
    out.mkdir(parents=True, exist_ok=True)
    parts = split(collect())
    record: dict[str, object] = {"python": platform.python_version(), "seed": SEED}
    for name, text in texts(parts).items():
        data = text.encode()
        (out / f"{name}.txt").write_bytes(data)
        counted = {"documents": len(parts[name])} if name in parts else {}
        record[name] = {**counted, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    record["heldout_documents"] = [document.name for document in parts["heldout"]]
    (out / "prepare.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} OUT_FOLDER")
    main(Path(sys.argv[1]))
