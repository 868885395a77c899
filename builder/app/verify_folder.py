"""Is a folder what its build.json says, and who signed that?"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from llm_build.app.options import BuildOptions
from llm_build.provenance.diff.sides import read_statement
from llm_build.provenance.statement import NAME, Checked, check_files, check_statement


class VerifiedFolder(NamedTuple):
    """``signed_by``: the id of the key that was asked for and did sign it, else "". ``differences``: from what it was
    compared with."""

    checked: Checked
    signed_by: str
    differences: list[str]

    @property
    def good(self) -> bool:
        return self.checked.intact and not self.differences


def verify_folder(options: BuildOptions, folder: Path, key: str | None, against: str | None) -> VerifiedFolder:
    """Hashes every file. ``key``: a public key that must have signed it; ``against``: a recipe, a lock or a folder.

    Raises UserError when there is nothing to check, StepError for what is no statement, or is not signed by the key."""
    document = read_statement(folder)
    signed_by = ""
    if key:
        from llm_build.provenance.signing import check_signature

        signed_by = check_signature(folder, Path(key))
    check_statement(document, folder / NAME)
    checked = check_files(folder, document)
    differences: list[str] = []
    if against:
        from llm_build.app.diff import folder_differences

        differences = folder_differences(options, folder, against)
    return VerifiedFolder(checked, signed_by, differences)
