"""Put an artifact's files where people look for them: hard links into the store, and ``build.json`` last."""

from __future__ import annotations

import errno
import json
import os
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from llm_build.core import disk, system
from llm_build.core.digest import canonical, sha256_hex, sha256_of_file
from llm_build.core.errors import UserError
from llm_build.core.filestore import FileStore
from llm_build.core.json_text import NotJson, parse_json
from llm_build.core.names import crosses_link
from llm_build.core.record import Output
from llm_build.core.run import Outcome
from llm_build.core.step_io import Json
from llm_build.provenance.statement import statement, subjects

_PROVENANCE = "build.json"
_INCOMING = ".incoming"  # files on their way in; what a killed build left there is removed by the next
# Below this, files are copies: a hand edit of a link would go through into the store and into other artifacts. Weights
# stay links, for they would take their size twice.
_COPIED_BELOW_BYTES = 1 << 20
_OTHER_DISK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)


class Exported(NamedTuple):
    folder: Path
    written: tuple[str, ...]
    removed: tuple[str, ...]
    edited: tuple[str, ...] = ()  # those of ``written`` that someone had changed since they were put there

    @property
    def changed(self) -> bool:
        return bool(self.written or self.removed)


def export(outcome: Outcome, goal_name: str, store: FileStore, folder: Path, recipe: Mapping[str, Json]) -> Exported:
    """Make ``folder`` hold exactly the outputs of the goal's artifact step, beside files that are not ours.

    Everything is prepared in a subfolder and then renamed, so a failure leaves the earlier files as they were. Nothing
    is touched when all is in place. ``recipe`` goes into build.json: no absolute paths in it, please.
    UserError when the folder cannot be written, StepError when the disk is full."""
    goal = next(goal for goal in outcome.plan.goals if goal.name == goal_name)
    outputs = outcome.records[goal.artifact].outputs
    assert _PROVENANCE not in outputs, f"{_PROVENANCE} is written by export"
    made = [(outcome.plan.steps[id_], outcome.records[id_]) for id_ in goal.steps]
    sha256s = _sha256s(outputs, store)
    document_parts = statement(recipe, made, outputs, sha256s.__getitem__)
    before = _read(folder / _PROVENANCE)
    known = sha256_hex(canonical(document_parts))  # writing it out takes ten times as long
    if store.statements.get(known) == sha256_hex(before.encode()):
        return put(goal_name, folder, outputs, before, store)
    document = json.dumps(document_parts, indent=1, sort_keys=True) + "\n"
    store.statements.put(known, sha256_hex(document.encode()))
    return put(goal_name, folder, outputs, document, store)


def put(name: str, folder: Path, outputs: Mapping[str, Output], document: str, store: FileStore) -> Exported:
    """As export of the goal ``name``, with the provenance given; "" leaves it out."""
    before = _read(folder / _PROVENANCE)
    wrong = [name for name, output in outputs.items() if not _in_place(folder / name, output)]
    gone = [name for name in _earlier(before) if name not in outputs and not crosses_link(folder, name)]
    if not wrong and not gone and before == document and not (folder / _INCOMING).exists():
        return Exported(folder, (), ())
    written = [*wrong, *([_PROVENANCE] if before != document else [])]
    edited = [name for name in _unchanged(before, outputs) if name in wrong and os.path.lexists(folder / name)]
    try:
        _bring(folder, {name: outputs[name] for name in wrong}, gone, document, store)
    except OSError as error:
        raise disk.explain_os_error(error, f"cannot write {name} to {folder}", folder, "dist.path") from error
    return Exported(folder, tuple(written), tuple(gone), tuple(edited))


def _bring(folder: Path, wanted: Mapping[str, Output], gone: list[str], document: str, store: FileStore) -> None:
    incoming = folder / _INCOMING
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        system.lock(handle, alone=True, wait=True)  # another build may write the same folder
        with suppress(FileNotFoundError):
            disk.remove_entry(incoming)
        incoming.mkdir()
        for name, output in wanted.items():
            if (folder / name).is_dir() and not (folder / name).is_symlink():
                raise UserError(f"{folder / name} is a folder where a file must go", "move it away")
            if crosses_link(folder, name):
                raise UserError(f"{folder / name} lies behind a link, which may lead anywhere", "remove the link")
            _place(store.path(output.digest), incoming / name, output)
        if document:
            (incoming / _PROVENANCE).write_text(document)
        for name in wanted:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(incoming / name, folder / name)
        for name in gone:
            _remove(folder, name)
        if document:
            os.replace(incoming / _PROVENANCE, folder / _PROVENANCE)
        else:
            _remove(folder, _PROVENANCE)
    except BaseException:
        disk.remove_tree(incoming)
        _remove_empty(new)
        raise
    finally:
        disk.remove_tree(incoming)
        os.close(handle)


def _remove_empty(folders: list[Path]) -> None:
    """What a failure would leave empty, the innermost first. One that holds something stays, with those around it."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def _place(blob: Path, target: Path, output: Output) -> None:
    """Hard link; of a small file and on another file system a reflink or a copy with the same mtime."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if output.nbytes >= _COPIED_BELOW_BYTES:
        try:
            os.link(blob, target)
            return
        except OSError as error:
            if error.errno not in _OTHER_DISK:
                raise
    _copy(blob, target)
    os.chmod(target, 0o444)
    os.utime(target, ns=(time.time_ns(), output.mtime_ns))


def _copy(source: Path, target: Path) -> None:
    import shutil

    with open(source, "rb") as old, open(target, "wb") as new:
        if system.clone(old.fileno(), new.fileno()):
            return
    shutil.copyfile(source, target)


def _in_place(path: Path, output: Output) -> bool:
    """A blob's mtime is set when it enters the store, to the nanosecond: with the size it tells blobs apart."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and (status.st_size, status.st_mtime_ns) == (output.nbytes, output.mtime_ns)


def _remove(folder: Path, name: str) -> None:
    (folder / name).unlink(missing_ok=True)
    for parent in list((folder / name).parents):
        if parent == folder or any(parent.iterdir()):
            break
        parent.rmdir()


def _read(path: Path) -> str:
    try:
        return disk.read_whole(path).decode("utf-8", "replace")
    except OSError:
        return ""


def _earlier(document: str) -> list[str]:
    """Files that the export behind ``document`` put here, names that leave the folder not counted."""
    try:
        return subjects(parse_json(document))
    except NotJson:
        return []


def _unchanged(document: str, outputs: Mapping[str, Output]) -> list[str]:
    """Files that are to be what the export behind ``document`` put here."""
    try:
        digests = {each["name"]: each["digest"]["blake3"] for each in parse_json(document)["subject"]}
    except (ValueError, KeyError, TypeError):
        return []
    return [name for name, output in outputs.items() if output.digest == f"blake3:{digests.get(name)}"]


def _sha256s(outputs: Mapping[str, Output], store: FileStore) -> dict[str, str]:
    """{blob digest: sha256 hex}, computed once per blob and remembered, on all cores."""
    digests = {output.digest for output in outputs.values()}
    known = {digest: value for digest in digests if (value := store.sha256s.get(digest))}
    missing = sorted(digests - known.keys())
    if missing:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for digest, value in zip(missing, pool.map(sha256_of_file, map(store.path, missing)), strict=True):
                store.sha256s.put(digest, value)
                known[digest] = value
    return known
