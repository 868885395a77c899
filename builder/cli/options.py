"""Every option of every command. Options may stand anywhere on the line.

A group is named after the command that reads its options; those of "running" are read by all that build, and "output"
and Hydra's own by all commands.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import NoReturn

from llm_build.cli.commands import COMMANDS
from llm_build.core.errors import UserError

HYDRA = "Hydra's own"
INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message, "build help options")


def parser() -> argparse.ArgumentParser:
    """All options of all commands."""
    p = _Parser(prog="build", add_help=False, allow_abbrev=False)
    p.add_argument("words", nargs="*")
    _add_running(p.add_argument_group("running"))
    _add_output(p.add_argument_group("output"))
    for command, add in _OF_COMMANDS.items():
        add(p.add_argument_group(command))
    _add_hydra(p.add_argument_group(HYDRA))
    return p


def known_flags(pages: argparse.ArgumentParser) -> set[str]:
    return {flag for action in pages._actions for flag in action.option_strings}


def other_command(pages: argparse.ArgumentParser, parsed: argparse.Namespace, command: str) -> tuple[str, str] | None:
    """An option that was given and its command, where that is another than ``command``."""
    for group in pages._action_groups:
        for option in group._group_actions:
            if group.title in COMMANDS and group.title != command and getattr(parsed, option.dest) != option.default:
                return option.option_strings[0], str(group.title)
    return None


def _add_running(group: argparse._ArgumentGroup) -> None:
    group.add_argument("-j", "--jobs", type=_positive, metavar="N", help="steps at once (default: one per core)")
    group.add_argument(
        "-k", "--keep-going", action="store_true", help="after a failure, build what does not depend on it"
    )
    group.add_argument("-n", "--dry-run", action="store_true", help="the same as `build plan`")
    group.add_argument("-m", "--multirun", action="store_true", help="a sweep: build every combination of a,b,c values")
    group.add_argument(
        "--allow-unsupported", action="store_true", help="a sweep with cells that cannot be built is no failure"
    )
    group.add_argument(
        "--locked", action="store_true", help="build what the lock file says, or say what moved and stop"
    )
    group.add_argument("--file", metavar="LOCK", help="lock, --locked: the lock file (default: recipes/NAME.lock.yaml)")


def _add_output(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--json", action="store_true", help="one JSON document on standard output, nothing else there")
    group.add_argument("--quiet", "-q", action="store_true", help="warnings, errors and the result only")
    group.add_argument("--debug", action="store_true", help="tracebacks")
    group.add_argument("--help", "-h", action="store_true", help="the first page, or after a command its page")
    group.add_argument("--version", action="store_true", help="of llm-build")


def _add_plan(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--steps", action="store_true", help="with -m: every step of every cell, not the matrix alone")


def _add_generate(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-tokens", type=_positive, default=128, metavar="N", help="at most (default: 128)")
    group.add_argument(
        "--temperature",
        type=_nonnegative,
        default=0.8,
        metavar="T",
        help="0: always the likeliest token (default: 0.8)",
    )
    group.add_argument(
        "--top-p",
        type=_fraction,
        default=0.9,
        metavar="P",
        help="from the likeliest tokens of this share (default: 0.9)",
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the random choice (default: 0)")
    group.add_argument("--plain", action="store_true", help="continue the prompt as it is, without a chat template")


def _add_bench(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--again", action="store_true", help="measure what was measured on this machine already")


def _add_lock(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--check", action="store_true", help="compare with the file, build nothing (0 or 2)")


def _add_verify_provenance(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--key", metavar="PEM", help="the public key that must have signed it")
    group.add_argument("--against", metavar="WHAT", help="a recipe, a lock or a folder to equal")


def _add_gc(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--max-age", metavar="30d", help="free results that were not used for so long (s, h, d, w)")
    group.add_argument("--max-size", metavar="20GB", help="free the oldest until the store is this small")
    group.add_argument(
        "--remote", action="store_true", help="in the shared store; recipes/*.lock.yaml and what is given stay"
    )
    group.add_argument("--yes", action="store_true", help="really free it")


def _add_doctor(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--store", action="store_true", help="check every byte of the store")
    group.add_argument(
        "--repair", action="store_true", help="with --store: drop what is damaged; a build makes it again"
    )


def _add_lower(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--dump", metavar="DIR", help="where the graph, the kernels and the code go")


def _add_graph(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--out", "-o", metavar="DIR", help="where the files go (default: dist.path)")


def _add_hydra(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--cfg", "-c", choices=["job", "hydra", "all"], help="print the composed configuration and stop")
    group.add_argument("--package", "-p", metavar="PATH", help="with --cfg: only this part")
    group.add_argument("--resolve", action="store_true", help="with --cfg: interpolations resolved")
    group.add_argument("--config-dir", "-cd", metavar="DIR", help="another folder of choices, before all others")
    group.add_argument(
        "--info",
        "-i",
        nargs="?",
        const="all",
        choices=INFO,
        metavar="WHAT",
        help=f"what Hydra knows: {', '.join(INFO)}",
    )
    group.add_argument(
        "--run", "-r", action="store_true", help="one build: of a recipe that sweeps its own choices alone"
    )
    group.add_argument("--hydra-help", action="store_true", help="Hydra's own page")
    group.add_argument(
        "--shell-completion",
        "-sc",
        action="store_true",
        help='tab completion: eval "$(build -sc install=bash)"; zsh, fish',
    )


_OF_COMMANDS: Mapping[str, Callable[[argparse._ArgumentGroup], None]] = {
    "plan": _add_plan, "generate": _add_generate, "bench": _add_bench, "lock": _add_lock,
    "verify-provenance": _add_verify_provenance, "gc": _add_gc, "doctor": _add_doctor, "lower": _add_lower,
    "graph": _add_graph,
}  # fmt: skip


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
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number, {low:g} or more")
    return value


def _fraction(text: str) -> float:
    value = _number(text, float, 0, 1)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a number above 0, at most 1")
    return value
