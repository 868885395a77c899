"""Use a folder that was built, without its recipe: only this user's own result is loaded, for a library is code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llm_build.app.generate import check_kinds
from llm_build.app.options import BuildOptions
from llm_build.app.places import open_store_at, places_of
from llm_build.app.request import compose_one
from llm_build.core.errors import StepError, UserError
from llm_build.core.filestore import FileStore
from llm_build.core.names import is_key
from llm_build.provenance.diff.sides import read_statement
from llm_build.provenance.statement import NAME, check_statement, has_digests


def check_built_folder(folder: Path, options: BuildOptions) -> None:
    """Raises UserError for a folder that nothing here runs, one whose files are not those that build.json lists, and
    one that this user did not build, unless store.trust=all."""
    if foreign := [word for word in options.overrides if not word.lstrip("+").startswith("store.")]:
        raise UserError(
            f"{folder} is built already; {foreign[0]} would change nothing. Beside a folder only store.* is read",
            f"build generate {foreign[0]} PROMPT   builds that, and uses it",
        )
    document = read_statement(folder)
    check_statement(document, folder / NAME)
    check_kinds(*_kinds_of(document, folder))
    _check_libraries(folder, document)
    places = places_of(compose_one(options))
    if places.trust != "all" and not _is_own(document, open_store_at(places)):
        raise UserError(
            f"{folder} was not built by you with the store at {places.store}, and its library is code that would run",
            "build it here; or store.trust=all if you trust whoever made it",
        )


def _kinds_of(document: Any, folder: Path) -> tuple[str, str, str]:
    """The target's kind and choice, and the package's kind. StepError where build.json does not say."""
    try:
        recipe = document["predicate"]["buildDefinition"]["externalParameters"]["recipe"]
        kinds = recipe["target"]["kind"], recipe["choices"]["target"], recipe["package"]["kind"]
    except (KeyError, TypeError) as error:
        raise StepError(f"{folder / NAME} does not say what was built: {error}", "build it again") from error
    return str(kinds[0]), str(kinds[1]), str(kinds[2])


def _check_libraries(folder: Path, document: Any) -> None:
    listed = {subject["name"]: subject["digest"] for subject in document["subject"]}
    for path in sorted(folder.glob("*.so")):
        digests = listed.get(path.name) or {}
        if not digests or not has_digests(path, digests):
            raise UserError(
                f"{path} is not the library that {NAME} lists: it is not loaded",
                f"build verify-provenance {folder}   or build it again",
            )


def _is_own(document: Any, store: FileStore) -> bool:
    """Whether a result that the store trusts (core/seals) has just the files that a statement lists. Caches of a store
    say nothing here: whoever can write to it can write them."""
    listed = {each["name"]: f"blake3:{each['digest'].get('blake3')}" for each in document["subject"]}
    for step in document["predicate"]["runDetails"]["byproducts"]:
        key = step["annotations"].get("key") if isinstance(step["annotations"], dict) else None
        record = store.load(key).record if is_key(key) else None
        if record and listed == {name: output.digest for name, output in record.outputs.items()}:
            return True
    return False
