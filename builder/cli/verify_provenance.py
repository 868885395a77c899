"""`build verify-provenance DIR`: is this folder what its build.json says, and who signed that?"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from builder.cli.arguments import Arguments
from builder.core.errors import StepError, UserError
from builder.core.units import format_bytes
from builder.provenance.statement import NAME, SIGNATURE, Checked, check_files, check_statement

SHOWN = 20


def show(arguments: Arguments) -> int:
    """0 when every file is there, unchanged and none is extra, the signature of --key holds, and nothing differs from
    --against; else 1. UserError when there is nothing to check."""
    options, folder = arguments.options, Path(arguments.word)
    document = statement_in(folder)
    by = ""
    if options.key:
        from builder.provenance.signing import check_signature

        by = check_signature(folder, Path(options.key))
    check_statement(document, folder / NAME)
    checked = check_files(folder, document)
    differing = against(arguments, options.against) if options.against else []
    good = checked.whole and not differing
    if options.json:
        whole: dict[str, Any] = {"folder": str(folder), "good": good, **checked._asdict()}
        whole |= {"signed_by": by or None, "against": differing}
        json.dump(whole, sys.stdout, indent=1)
        print()
    else:
        tell(folder, checked, by, differing, options.against)
    return 0 if good else 1


def statement_in(folder: Path) -> Any:
    """build.json. UserError when there is none, StepError for what is no JSON."""
    path = folder / NAME
    if not path.is_file():
        what = f"has no {NAME}" if folder.is_dir() else "is no folder"
        raise UserError(f"{folder} {what}: nothing was built there", "build verify-provenance dist/NAME")
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StepError(f"{path} is not valid JSON: {error}", "build") from error


def against(arguments: Arguments, what: str) -> list[str]:
    """How the folder differs from a recipe, a lock or another folder."""
    from builder.app.sides import load, modules_of
    from builder.provenance.diff.locks import line, moved

    last, now = load(arguments, what), load(arguments, arguments.word)
    return [line(each) for each in moved(last.lock, now.lock, modules_of(last, now), common=True)]


def tell(folder: Path, checked: Checked, by: str, differing: list[str], what: str) -> None:
    for verb, names in (("changed", checked.changed), ("missing", checked.missing), ("extra", checked.extra)):
        for name in names:
            print(f"{verb}: {name}")
    for text in differing[:SHOWN]:
        print(f"differs from {what}: {text}")
    if len(differing) > SHOWN:
        print(f"and {len(differing) - SHOWN} differences more: --json shows all")
    files = len(checked.same)
    if checked.whole:
        signed = f"; signed by key {by}" if by else unchecked(folder)
        print(f"{folder}: {files} files, {format_bytes(checked.nbytes)}, all as {NAME} says{signed}")
    else:
        print(f"{folder}: {files} files are as {NAME} says, the others are named above")


def unchecked(folder: Path) -> str:
    there = (folder / SIGNATURE).is_file()
    return "; it is signed, and --key public.pem checks by whom" if there else "; not signed"
