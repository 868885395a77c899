"""Tab completion: what may follow on a command line, and what connects a shell with that.

A shell asks `build --shell-completion query=SHELL` with the line in COMP_LINE, as Hydra's plugins do. Nothing is
composed for an answer: it comes from the folders of choices and the schema.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from llm_build.app.request import folders_of
from llm_build.cli.arguments import Arguments
from llm_build.cli.commands import COMMANDS, FOLDER_COMMANDS, WITHOUT_RECIPE
from llm_build.cli.options import HYDRA, parser
from llm_build.config.choices import GROUPS, Folders, choices_of
from llm_build.config.literal_paths import is_path_key
from llm_build.core.errors import UserError

SHELLS: Mapping[str, tuple[str, str]] = {  # what installs completion, what takes it out again
    "bash": (
        """\
_llm_build_complete() {
    local IFS=$'\\n'
    COMPREPLY=($(COMP_LINE="$COMP_LINE" COMP_POINT="$COMP_POINT" COMP_WORDBREAKS="$COMP_WORDBREAKS" \\
        "${COMP_WORDS[0]}" --shell-completion query=bash 2>/dev/null))
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} != *[=./] ]] || compopt -o nospace
}
complete -F _llm_build_complete build llm-build""",
        "complete -r build llm-build; unset -f _llm_build_complete",
    ),
    "zsh": (
        """\
_llm_build_complete() {
    local -a found
    found=("${(@f)$(COMP_LINE="${(j: :)words[1,CURRENT]}" ${words[1]} --shell-completion query=zsh 2>/dev/null)}")
    [[ ${#found} -eq 1 && ${found[1]} != *[=./] ]] && compadd -Q -- $found || compadd -Q -S '' -- $found
}
compdef _llm_build_complete build llm-build""",
        "compdef -d build llm-build; unfunction _llm_build_complete",
    ),
    "fish": (
        """\
function _llm_build_complete
    set -lx COMP_LINE (commandline -cp)
    set -l words (commandline -opc)
    $words[1] --shell-completion query=fish 2>/dev/null
end
complete -c build -f -a '(_llm_build_complete)'
complete -c llm-build -f -a '(_llm_build_complete)'""",
        "complete -e -c build; complete -e -c llm-build; functions -e _llm_build_complete",
    ),
}
_ACTIONS = ("install", "uninstall", "query")


def show(arguments: Arguments) -> int:
    """--shell-completion install=SHELL, uninstall=SHELL or query=SHELL. Raises UserError for anything else."""
    asked = [text.partition("=") for text in arguments.overrides]
    if len(asked) != 1 or asked[0][0] not in _ACTIONS or asked[0][2] not in SHELLS:
        found = f"found {' '.join(arguments.overrides)}" if asked else "it needs to know what to do"
        raise UserError(
            f"--shell-completion: {found}; allowed: {', '.join(_ACTIONS)}, each with {', '.join(SHELLS)}",
            'eval "$(build --shell-completion install=bash)"   (in ~/.bashrc, to keep it)',
        )
    action, _, shell = asked[0]
    print(_answer(folders_of(arguments.build)) if action == "query" else SHELLS[shell][action == "uninstall"])
    return 0


def _answer(folders: Folders) -> str:
    """The words that fit, one a line. bash replaces only what stands behind the last character of its
    $COMP_WORDBREAKS, so it gets the rest of each."""
    line, at = os.environ.get("COMP_LINE", ""), os.environ.get("COMP_POINT", "")
    line = line[: int(at)] if at.isdigit() else line
    kept = re.search(rf"[^\s]*[{re.escape(breaks)}]", _split(line)[-1]) if (breaks := _word_breaks()) else None
    return "\n".join(_escape(word[kept.end() if kept else 0 :]) for word in complete(line, folders))


def _word_breaks() -> str:
    return "".join(set("=:") & set(os.environ.get("COMP_WORDBREAKS", "")))


def _escape(word: str) -> str:
    """For a shell, where a path has spaces or quotes."""
    return re.sub(r"([^\w\-+./=,:@%~])", r"\\\1", word)


def complete(line: str, folders: Folders) -> list[str]:
    """The words that the last word of a line may become, each of them whole."""
    words = _split(line)
    if re.match(r"python[\d.]*$", os.path.basename(words[0])):  # python -m llm_build
        words = words[words.index("-m") + 1 if "-m" in words else 1 :]
    *before, word = words[1:] or [""]
    if options := _option_before(before, word):
        return _starting(word, _values_of(options, word))
    if word.startswith("-"):
        return _complete_option(before, word)
    if "--shell-completion" in before or "-sc" in before:
        return _starting(word, [f"{action}={shell}" for action in _ACTIONS for shell in SHELLS])
    if "=" in word:
        return _complete_value(word, folders)
    keys = [] if _command_of(before) in WITHOUT_RECIPE else _complete_key(word)
    return [*_starting(word, _next_words(before, word)), *keys]


def _split(line: str) -> list[str]:
    """As a shell does, unfinished quotes included; the last word is "" behind a space."""
    words = None
    for end in ("", "'", '"'):
        try:
            words = shlex.split(line + end)
            break
        except ValueError:
            continue
    words = line.split() if words is None else words
    return [*words, ""] if not line or line[-1].isspace() or not words else words


def _starting(word: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(word)]


def _command_of(before: Sequence[str]) -> str:
    return next((word for word in before if word in COMMANDS), "")


# Options


def _option_before(before: Sequence[str], word: str) -> argparse.Action | None:
    """The option that ``word`` is the value of: --cfg job."""
    if not before or word.startswith("-"):
        return None
    for action in parser()._actions:
        if before[-1] in action.option_strings and action.nargs != 0:
            return action if action.nargs is None or not word or any(_values_of(action, word)) else None
    return None


def _values_of(option: argparse.Action, word: str) -> list[str]:
    if option.choices:
        return _starting(word, map(str, option.choices))
    return _paths(word) if option.metavar in ("DIR", "LOCK", "PEM", "WHAT") else []


def _complete_option(before: Sequence[str], word: str) -> list[str]:
    """Those of the command, and after a = the values of one."""
    flag, equals, value = word.partition("=")
    found = []
    command = _command_of(before) or "build"
    groups = (command, *COMMANDS[command].options, "output", HYDRA)
    for group in parser()._action_groups:
        for action in group._group_actions if group.title in groups else ():
            if equals and flag in action.option_strings:
                return [f"{flag}={each}" for each in _values_of(action, value)]
            found += _starting(word, [text for text in action.option_strings if text.startswith("--")])
    return sorted(found)


# Commands, keys and values


def _next_words(before: Sequence[str], word: str) -> list[str]:
    command = _command_of(before)
    if not command:
        return list(COMMANDS)
    if command == "help" and before[-1] == "help":
        return [*COMMANDS, "options"]
    if command == "list" and before[-1] == "list":
        return list(GROUPS)
    return _paths(word) if command in FOLDER_COMMANDS else []


def _complete_key(word: str) -> list[str]:
    """Groups with a =, sections with a point, and below a section its keys."""
    sign, name = _split_sign(word)
    from llm_build.config.keys import all_keys

    depth = name.count(".")
    found = [f"{group}=" for group in GROUPS] if not depth else []
    for key in all_keys():
        parts = key.split(".")
        found.append(".".join(parts[: depth + 1]) + ("=" if len(parts) == depth + 1 else "."))
    return [sign + each for each in _starting(name, dict.fromkeys(found))]


def _complete_value(word: str, folders: Folders) -> list[str]:
    """The last of several values with commas; those that stand there already are not offered again."""
    key, _, value = word.partition("=")
    name = _split_sign(key)[1]
    listed, comma, last = value.rpartition(",")
    start = f"{key}={listed}{comma}"
    if is_path_key(name):
        return [start + path for path in _paths(last)]
    if name in GROUPS:
        values: Iterable[str] = choices_of(name, folders)
    else:
        from llm_build.planner.closed_values import closed_values

        values = closed_values(name)
    there = listed.split(",") if comma else []
    return [start + each for each in _starting(last, values) if each not in there]


def _split_sign(word: str) -> tuple[str, str]:
    """Hydra's + and ~ before a key."""
    name = word.lstrip("+~")
    return word[: len(word) - len(name)], name


def _paths(word: str) -> list[str]:
    """Files and folders that begin so; a folder ends with a slash."""
    folder, _, begun = word.rpartition("/")
    place = Path(folder + "/" if word.startswith("/") else folder or ".").expanduser()
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return []
    start = word[: len(word) - len(begun)]
    return [
        start + entry.name + ("/" if entry.is_dir() else "")
        for entry in entries
        if entry.name.startswith(begun) and (begun.startswith(".") or not entry.name.startswith("."))
    ]
