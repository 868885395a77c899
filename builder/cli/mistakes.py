"""What is said of a word or an option that the command line does not know: what was probably meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence

from llm_build.cli.commands import COMMANDS
from llm_build.cli.options import known_flags, parser
from llm_build.config.choices import GROUPS, hub_source
from llm_build.core.errors import UserError

REFUSED = {  # options of Hydra that would replace what llm-build is made of
    ("--config-path", "-cp"): "the primary configuration is llm-build's own; --config-dir DIR adds a folder of choices",
    ("--config-name", "-cn"): "the primary configuration is llm-build's own; a whole build in a file is a recipe: "
    "recipe=NAME reads recipes/NAME.yaml",
    ("--experimental-rerun",): "it reads a pickle, which llm-build never does; `build --locked` repeats a build",
}


def check_flags(argv: Sequence[str], unknown: Sequence[str]) -> None:
    """Raises UserError for an option of Hydra that is refused, and for a choice or a key that is written as an option
    (--quant X, -model=X). The rest of what is ``unknown`` may be short options together, and is argparse's."""
    for word in unknown:
        flag, equals, value = word.partition("=")
        if word == "--":
            return
        for flags, reason in REFUSED.items():
            if flag in flags:
                raise UserError(f"{flags[0]} is refused: {reason}", "build help options")
        if key := _key_of(flag.lstrip("-")):
            after = argv[argv.index(word) + 1 :][:1]
            following = after[0] if after and not after[0].startswith("-") else "..."
            raise UserError(
                f"{flag} is no option: choices and keys are written as name=value",
                f"build {key}={value if equals else following}",
            )


def _key_of(name: str) -> str:
    """The choice group or the key that an option's name spells: quant, model.source, context-window-size; or ""."""
    spelled = name.replace("-", "_")
    if spelled in GROUPS:
        return spelled
    from llm_build.config.keys import all_keys

    return next((key for key in all_keys() if spelled in (key, key.rpartition(".")[2])), "")


def unknown_option(word: str) -> UserError:
    """``word``: as it was typed."""
    flag = word.partition("=")[0]
    near = difflib.get_close_matches(flag, sorted(known_flags(parser())), n=1)
    suggestion = f"; did you mean {near[0]}?" if near else ""
    return UserError(f"{flag}: no such option{suggestion}", "build help options")


def unknown_word(word: str, command: str) -> UserError:
    """A word that is no command, no override and nothing that ``command`` takes."""
    if word in GROUPS:
        return UserError(f"{word!r} needs a value: a choice is written as {word}=name", f"build list {word}")
    if source := hub_source(word) or _checkpoint_at(word):
        return UserError(
            f"{word!r} is neither a command nor an override (name=value); a checkpoint is named by model.source",
            f"build model=auto model.source={source}",
        )
    if command != "build":
        takes = COMMANDS[command].takes or "no words"
        return UserError(
            f"{word!r} is no override (name=value), and build {command} takes {takes}", f"build help {command}"
        )
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    said = f"did you mean `build {near[0]}`?" if near else f"commands: {', '.join(COMMANDS)}"
    return UserError(f"{word!r} is neither a command nor an override (name=value); {said}", "build help")


def _checkpoint_at(word: str) -> str:
    """The word, where it names a folder or a file of this disk."""
    return word if os.path.isdir(word) or ("/" in word and os.path.exists(word)) else ""
