"""`build verify-provenance DIR`: is this folder what its build.json says, and who signed that?"""

from __future__ import annotations

from pathlib import Path

from llm_build.app.verify_folder import VerifiedFolder, verify_folder
from llm_build.cli.arguments import Arguments
from llm_build.cli.output import print_document
from llm_build.core.units import count_of, format_bytes
from llm_build.provenance.statement import NAME, SIGNATURE

_SHOWN = 20


def show(arguments: Arguments) -> int:
    """0 when every file is there, unchanged and none is extra, the signature of --key holds, and nothing differs from
    --against; else 1. UserError when there is nothing to check."""
    options, folder = arguments.options, Path(arguments.word)
    verified = verify_folder(arguments.build, folder, options.key, options.against)
    if options.json:
        row = {"folder": str(folder), "good": verified.good, **verified.checked._asdict()}
        print_document({**row, "signed_by": verified.signed_by or None, "against": verified.differences})
    else:
        _print_verified(folder, verified, options.against or "")
    return 0 if verified.good else 1


def _print_verified(folder: Path, verified: VerifiedFolder, against: str) -> None:
    checked, differences = verified.checked, verified.differences
    for verb, names in (("changed", checked.changed), ("missing", checked.missing), ("extra", checked.extra)):
        for name in names:
            print(f"{verb}: {name}")
    for text in differences[:_SHOWN]:
        print(f"differs from {against}: {text}")
    if len(differences) > _SHOWN:
        print(f"and {count_of(len(differences) - _SHOWN, 'difference')} more: --json shows all")
    files = len(checked.same)
    if checked.intact:
        signed = f"; signed by key {verified.signed_by}" if verified.signed_by else _unchecked_signature(folder)
        print(f"{folder}: {count_of(files, 'file')}, {format_bytes(checked.nbytes)}, all as {NAME} says{signed}")
    else:
        print(f"{folder}: as {NAME} says: {count_of(files, 'file')}; the others are named above")


def _unchecked_signature(folder: Path) -> str:
    signed = (folder / SIGNATURE).is_file()
    return "; it is signed, and --key public.pem checks by whom" if signed else "; not signed"
