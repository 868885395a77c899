"""`build help`: a first page that fits a screen, a page on each command, and all options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from shutil import get_terminal_size
from textwrap import fill

from llm_build.cli.arguments import Arguments
from llm_build.cli.commands import COMMANDS, WITHOUT_RECIPE, Command
from llm_build.cli.options import parser
from llm_build.config.choices import GROUPS
from llm_build.core.errors import UserError

_ALL = "options"
_FIRST = (
    ("build", "the demo model in 4 bits for this CPU, into dist/"),
    ("build model=auto model.source=hf://org/name", "a checkpoint of the hub, or of a folder"),
    ("build quant=q8f16_1 target=webgpu", "another scheme, another target"),
    ('build generate "The function returns"', "text from what was built"),
)
_NAME = max(map(len, COMMANDS))


def show(arguments: Arguments) -> int:
    """Raises UserError for a page that there is not."""
    topic = arguments.word
    if not topic:
        print(first_page())
    elif topic == _ALL:
        print("\n".join(option_lines([str(group.title) for group in parser()._action_groups[2:]])))
    elif topic in COMMANDS:
        print(command_page(topic, COMMANDS[topic]))
    else:
        raise _no_page(topic)
    return 0


def first_page() -> str:
    lines = [
        "Turns a Hugging Face checkpoint into a compiled language model; redoes only what changed.",
        "usage: build [command] [group=choice ...] [key=value ...] [options]",
        "",
        *(f"  {command:<45}{text}" for command, text in _FIRST),
        "",
        "commands:",
        *(f"  {name:<{_NAME}}  {command.summary}" for name, command in COMMANDS.items()),
        "",
        "build list       every model, quant, target, package and recipe",
        "build --cfg job  every key with its value; set any: model.context_window_size=1024",
    ]
    return "\n".join(lines)


def command_page(name: str, command: Command) -> str:
    """What it does, how it is called, its options."""
    usage = " ".join(filter(None, ("build" if name == "build" else f"build {name}", command.takes)))
    recipe = "" if name in WITHOUT_RECIPE else " [group=choice ...] [key=value ...]"
    lines = [
        f"usage: {usage}{recipe} [options]",
        "",
        fill(f"{command.summary[0].upper()}{command.summary[1:]}. {command.page}", _width()),
        "",
        *(f"  {example}" for example in command.examples),
        "",
        *option_lines([*dict.fromkeys((name, *command.options, "output"))]),
        f"build help {_ALL}: every option, Hydra's own too",
    ]
    return "\n".join(lines)


def option_lines(titles: Sequence[str]) -> list[str]:
    """The groups of options with these titles."""
    groups = {str(group.title): group for group in parser()._action_groups[2:]}
    return [line for title in titles if title in groups for line in _group_lines(groups[title])]


def _group_lines(group: argparse._ArgumentGroup) -> list[str]:
    formatter = argparse.HelpFormatter("build", max_help_position=32, width=_width())
    formatter.start_section(group.title)
    formatter.add_arguments(group._group_actions)
    formatter.end_section()
    return [*formatter.format_help().splitlines(), ""]


def _width() -> int:
    return get_terminal_size((100, 24)).columns


def _no_page(topic: str) -> UserError:
    if topic in GROUPS:
        return UserError(f"{topic} is a group of choices, not a command", f"build list {topic}")
    near = get_close_matches(topic, COMMANDS, n=1)
    said = f"did you mean {near[0]}?" if near else f"allowed: {', '.join(COMMANDS)}, {_ALL}"
    return UserError(f"{topic!r} has no page of help; {said}", "build help")
