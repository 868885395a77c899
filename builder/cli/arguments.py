"""argv -> what was asked. Overrides are Hydra's and are not looked into here."""

from __future__ import annotations

import os
import re
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, fields

from llm_build.app.options import BuildOptions
from llm_build.cli.commands import COMMANDS, FOLDER_COMMANDS
from llm_build.cli.options import known_flags, other_command, parser
from llm_build.config.choices import GROUPS, SECTIONS
from llm_build.config.literal_paths import is_path_key
from llm_build.core.errors import UserError

_ALONE = ("run", "multirun", "cfg", "info", "hydra_help", "shell_completion")  # as Hydra has it
_OVERRIDE = re.compile(r"^(~[\w./@-]+$|[+]{0,2}~?[A-Za-z_][\w./@:-]*=)")


@dataclass(frozen=True, slots=True)
class CommandOptions:
    """The options that are not about what is built: what is printed, and those of single commands. `build --help` says
    what each means; the names are those of the command line."""

    json: bool
    quiet: bool
    steps: bool
    debug: bool
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
    word: str  # STEP of why, PROMPT of generate, GROUP of list, A of diff, DIR of verify-provenance, COMMAND of help
    other: str  # B of diff
    build: BuildOptions
    options: CommandOptions

    @property
    def overrides(self) -> tuple[str, ...]:
        return self.build.overrides


def parse(argv: Sequence[str]) -> Arguments:
    """Raises UserError for an unknown option or command, an option of another command, or a word that is missing."""
    pages = parser()
    parsed = _parse_options(pages, argv)
    words = [] if parsed.shell_completion else _words_of(parsed.words)  # what it takes is its own: install=bash
    overrides = tuple(w for w in parsed.words if w not in words)
    named = words.pop(0) if words and words[0] in COMMANDS else ""
    command = "plan" if parsed.dry_run and named in ("", "build") else named or "build"
    if parsed.help:
        command, words = "help", [named] if named else []
    _check_options(pages, parsed, command)
    word, other = _check_words(command, words)
    options = CommandOptions(**{field.name: getattr(parsed, field.name) for field in fields(CommandOptions)})
    build = BuildOptions(
        overrides, parsed.config_dir, parsed.multirun, parsed.locked, parsed.file, parsed.jobs or 0, parsed.keep_going,
        parsed.run,
    )  # fmt: skip
    return Arguments(command, word, other, build, options)


def _check_words(command: str, words: list[str]) -> tuple[str, str]:
    """The words that a command takes, "" where it takes none. UserError for one too many or too few."""
    takes = COMMANDS[command].takes.split()
    given, left = words[: len(takes)], words[len(takes) :]
    if left:
        from llm_build.cli.mistakes import unknown_word

        raise unknown_word(left[0], command)
    if len(given) < sum(not word.startswith("[") for word in takes):
        raise UserError(f"build {command} needs {' '.join(takes)}", f"build {command} {' '.join(takes)}")
    word, other = (*given, "", "")[:2]
    return word, other


def _words_of(line: Sequence[str]) -> list[str]:
    """Those words of a line that are no overrides: the command, and what it takes."""
    takes_folders = not FOLDER_COMMANDS.isdisjoint(line)
    words = [w for w in line if not _OVERRIDE.match(w) or (takes_folders and _is_path(w))]
    return _with_prompt(line, words) if words[:1] == ["generate"] else words


def _parse_options(pages: ArgumentParser, argv: Sequence[str]) -> Namespace:
    if unknown := [word for word in argv if word.startswith("-") and word.partition("=")[0] not in known_flags(pages)]:
        from llm_build.cli.mistakes import check_flags

        check_flags(argv, unknown)
    parsed, left = pages.parse_known_intermixed_args(list(argv))
    if left:
        from llm_build.cli.mistakes import unknown_option

        raise unknown_option(left[0])
    return parsed


def _check_options(pages: ArgumentParser, parsed: Namespace, command: str) -> None:
    """Raises UserError for options that mean nothing together, or nothing to the command."""
    if parsed.dry_run and command not in ("plan", "help"):
        raise UserError(f"-n is the same as `build plan`; build {command} has no dry run", "build plan")
    asked = [f"--{name.replace('_', '-')}" for name in _ALONE if getattr(parsed, name)]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} do not go together; allowed: one of them", "build help options")
    if (parsed.resolve or parsed.package) and not parsed.cfg:
        flag = "--resolve" if parsed.resolve else f"--package {parsed.package}"
        choice = "" if parsed.resolve else f"   (what is packaged is a choice: package={parsed.package})"
        raise UserError(f"{flag} says how --cfg prints; allowed: with --cfg", f"build --cfg job {flag}{choice}")
    if not parsed.help and (wrong := other_command(pages, parsed, command)):
        option, theirs = wrong
        raise UserError(f"{option} is an option of `build {theirs}`, and of that alone", f"build help {theirs}")


def _with_prompt(line: Sequence[str], words: list[str]) -> list[str]:
    """The words of generate, whose prompt and whose folder may hold a =: "x=1" is no key of a recipe, and of
    "model=x is what?" no key has such a value."""
    left = [word for word in line if word in words or _is_path(word)]
    others = [word for word in line if word not in left]
    prompts = [word for word in others if not _has_known_key(word)] or [word for word in others if _is_sentence(word)]
    if prompts and all(os.path.isdir(word) for word in left[1:]):
        left = [word for word in line if word in left or word == prompts[0]]
    return left


def _is_sentence(word: str) -> bool:
    """Whether a word with a = reads as a text: it has spaces, and no value has them but a path's and what is quoted or
    in brackets."""
    key, _, value = word.partition("=")
    return " " in value.strip() and value[0] not in "'\"[{" and not is_path_key(key.lstrip("+~"))


def _has_known_key(word: str) -> bool:
    key = re.split(r"[=@]", word.lstrip("+~"), maxsplit=1)[0]
    first, dot, _ = key.partition(".")
    if "/" in key or first == "hydra":
        return key.startswith("hydra")
    return first in SECTIONS if dot else key in (*GROUPS, "name")


def _is_path(word: str) -> bool:
    """Whether a word with a = names a folder, as sweeps name them (dist/x-method=rtn), and is no override."""
    key = word.partition("=")[0]
    return os.path.exists(word) or ("/" in key and not key.lstrip("+~").startswith("hydra/"))
