"""argv -> what was asked. Overrides are Hydra's and are not looked into here."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import NoReturn

from llm_build.app.options import BuildOptions
from llm_build.core.errors import UserError

COMMANDS = {
    "build": "bring a recipe up to date (the default)",
    "plan": "say what would run and why, and run nothing",
    "why": "STEP: the parts of a step's key now and last time",
    "lower": "compile one recipe's library and write what each pass and kernel became: --dump DIR",
    "graph": "draw the steps: text here, Mermaid and SVG files in dist/",
    "generate": '"PROMPT": bring the recipe up to date and stream text from it',
    "bench": "bring the recipe up to date and measure its speed, memory and load time on this machine",
    "lock": "bring the recipe up to date and write down all that it is made of: recipes/NAME.lock.yaml",
    "diff": "A B: what differs between two recipes, locks or built folders",
    "verify-provenance": "DIR: hash every file of a built folder and compare with what its build.json says",
    "pull": "bring a recipe's results from the shared store (store.remote=) into its folder; builds nothing",
    "push": "upload what this machine has of a recipe's results to the shared store; builds nothing",
    "gc": "free what nothing refers to any more (dry run unless --yes)",
    "doctor": "the tools and devices found here, and what a missing one is needed for",
    "list": "every choice with one line",
}
_OVERRIDE = re.compile(r"^(~[\w./@-]+$|[+]{0,2}~?[A-Za-z_][\w./@:-]*=)")
_WORDS = {"why": "STEP", "generate": '"PROMPT"', "diff": "A B", "verify-provenance": "DIR"}  # what commands take

_FOLDER_COMMANDS = {"diff", "verify-provenance"}


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """The options that are not about what is built: what is printed, and those of single commands. `build --help` says
    what each means; the names are those of the command line."""

    json: bool
    quiet: bool
    steps: bool
    debug: bool
    help: bool
    version: bool
    allow_unsupported: bool
    max_tokens: int  # generate
    temperature: float
    top_p: float
    seed: int
    plain: bool
    again: bool  # bench
    check: bool  # lock
    key: str | None  # verify-provenance
    against: str | None
    max_age: str | None  # gc
    max_size: str | None
    remote: bool
    yes: bool
    store: bool  # doctor
    repair: bool
    out: str | None  # graph
    dump: str | None  # lower
    cfg: str | None  # Hydra's
    package: str | None
    resolve: bool
    info: str | None
    hydra_help: bool
    shell_completion: bool


@dataclass(frozen=True, slots=True)
class Arguments:
    command: str
    word: str  # STEP of why, PROMPT of generate, GROUP of list, A of diff, DIR of verify-provenance
    other: str  # B of diff
    build: BuildOptions
    options: CommandOptions

    @property
    def overrides(self) -> tuple[str, ...]:
        return self.build.overrides


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message, "build --help")


def parser() -> argparse.ArgumentParser:
    """All options of all commands; they may stand anywhere on the line."""
    p = _Parser(prog="build", add_help=False, allow_abbrev=False)
    p.add_argument("words", nargs="*")
    run = p.add_argument_group("running")
    run.add_argument("-j", "--jobs", type=_positive, metavar="N", help="steps at once (default: one per core)")
    run.add_argument(
        "-k", "--keep-going", action="store_true", help="after a failure, build what does not depend on it"
    )
    run.add_argument("-n", "--dry-run", action="store_true", help="the same as `build plan`")
    run.add_argument("-m", "--multirun", action="store_true", help="a sweep: build every combination of a,b,c values")
    run.add_argument(
        "--allow-unsupported", action="store_true", help="a sweep with cells that cannot be built is no failure"
    )
    run.add_argument("--locked", action="store_true", help="build what the lock file says, or say what moved and stop")
    show = p.add_argument_group("output")
    show.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")
    show.add_argument("--quiet", "-q", action="store_true", help="warnings, errors and the result only")
    show.add_argument("--steps", action="store_true", help="plan -m: every step of every cell, not the matrix alone")
    show.add_argument("--debug", action="store_true", help="tracebacks")
    show.add_argument("--help", "-h", action="store_true", help="this page")
    show.add_argument("--version", action="store_true", help="of llm-build")
    text = p.add_argument_group("generate")
    text.add_argument("--max-tokens", type=_positive, default=128, metavar="N", help="at most (default: 128)")
    text.add_argument(
        "--temperature",
        type=_nonnegative,
        default=0.8,
        metavar="T",
        help="0: always the likeliest token (default: 0.8)",
    )
    text.add_argument(
        "--top-p",
        type=_fraction,
        default=0.9,
        metavar="P",
        help="from the likeliest tokens of this share (default: 0.9)",
    )
    text.add_argument("--seed", type=int, default=0, metavar="N", help="of the random choice (default: 0)")
    text.add_argument("--plain", action="store_true", help="continue the prompt as it is, without a chat template")
    bench = p.add_argument_group("bench")
    bench.add_argument("--again", action="store_true", help="measure what was measured on this machine already")
    lock = p.add_argument_group("lock, verify-provenance")
    lock.add_argument("--check", action="store_true", help="lock: compare with the file, build nothing (0 or 2)")
    lock.add_argument("--file", metavar="LOCK", help="lock, --locked: the lock file (default: recipes/NAME.lock.yaml)")
    lock.add_argument("--key", metavar="PEM", help="verify-provenance: the public key that must have signed it")
    lock.add_argument("--against", metavar="WHAT", help="verify-provenance: a recipe, a lock or a folder to equal")
    gc = p.add_argument_group("gc, doctor, graph, lower")
    gc.add_argument("--max-age", metavar="30d", help="gc: free results that were not used for so long (s, h, d, w)")
    gc.add_argument("--max-size", metavar="20GB", help="gc: free the oldest until the store is this small")
    gc.add_argument(
        "--remote", action="store_true", help="gc: in the shared store; recipes/*.lock.yaml and what is given stay"
    )
    gc.add_argument("--yes", action="store_true", help="gc: really free it")
    gc.add_argument("--store", action="store_true", help="doctor: check every byte of the store")
    gc.add_argument(
        "--repair", action="store_true", help="doctor --store: drop what is damaged; a build makes it again"
    )
    gc.add_argument("--dump", metavar="DIR", help="lower: where the graph, the kernels and the code go")
    gc.add_argument("--out", "-o", metavar="DIR", help="graph: where the files go (default: dist.path)")
    hydra = p.add_argument_group("Hydra's own")
    hydra.add_argument("--cfg", "-c", choices=["job", "hydra", "all"], help="print the composed configuration and stop")
    hydra.add_argument("--package", "-p", metavar="PATH", help="with --cfg: only this part")
    hydra.add_argument("--resolve", action="store_true", help="with --cfg: interpolations resolved")
    hydra.add_argument("--config-dir", "-cd", metavar="DIR", help="another folder of choices, before all others")
    hydra.add_argument(
        "--info", "-i", nargs="?", const="all", metavar="WHAT", help="what Hydra knows: plugins, defaults, ..."
    )
    hydra.add_argument("--hydra-help", action="store_true", help="Hydra's own page")
    hydra.add_argument(
        "--shell-completion", "-sc", action="store_true", help='tab completion: eval "$(build -sc install=bash)"'
    )
    return p


def parse(argv: Sequence[str]) -> Arguments:
    """Raises UserError for an unknown flag or command, or a word that is missing."""
    parsed = parser().parse_intermixed_args(list(argv))
    options = CommandOptions(**{field.name: getattr(parsed, field.name) for field in fields(CommandOptions)})
    takes_folders = not _FOLDER_COMMANDS.isdisjoint(parsed.words)
    words = [w for w in parsed.words if not _OVERRIDE.match(w) or (takes_folders and _is_path(w))]
    overrides = tuple(w for w in parsed.words if w not in words)
    command = words.pop(0) if words and words[0] in COMMANDS else "build"
    if parsed.dry_run and command == "build":
        command = "plan"
    word = words.pop(0) if words and command in (*_WORDS, "list") else ""
    other = words.pop(0) if words and command == "diff" else ""
    if words:
        raise _unknown_word(words[0], command)
    if command in _WORDS and not (other if command == "diff" else word) and not options.help:
        raise UserError(f"build {command} needs {_WORDS[command]}", f"build {command} {_WORDS[command]}")
    build = BuildOptions(
        overrides, parsed.config_dir, parsed.multirun, parsed.locked, parsed.file, parsed.jobs or 0, parsed.keep_going
    )
    return Arguments(command, word, other, build, options)


def _is_path(word: str) -> bool:
    """Whether a word with a = names a folder, as sweeps name them (dist/x-method=rtn), and is no override."""
    key = word.partition("=")[0]
    return os.path.exists(word) or ("/" in key and not key.lstrip("+~").startswith("hydra/"))


def _unknown_word(word: str, command: str) -> UserError:
    import difflib

    near = difflib.get_close_matches(word, COMMANDS, n=1)
    suggestion = f"; did you mean `build {near[0]}`?" if near and command == "build" else ""
    return UserError(
        f"{word!r} is neither a command ({', '.join(COMMANDS)}) nor an override (name=value){suggestion}",
        "build --help",
    )


def _positive(text: str) -> int:
    return int(_number(text, int, 1))


def _nonnegative(text: str) -> float:
    return _number(text, float, 0)


def _number(text: str, kind: type[int] | type[float], low: float, high: float = 1e18) -> float:
    """argparse's type for a number from ``low`` to ``high``."""
    try:
        value = float(kind(text))
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a _number, {low:g} or more")
    return value


def _fraction(text: str) -> float:
    value = _number(text, float, 0, 1)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0, at most 1")
    return value
