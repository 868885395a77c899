"""``build.json``: who made the files of an artifact from what, as an in-toto statement with SLSA provenance.

Shapes: https://in-toto.io/Statement/v1 and https://slsa.dev/spec/v1.0/provenance. Only times differ between two builds
of the same recipe: there are no paths, no host names and no process ids in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from errno import ENOENT
from functools import cache
from pathlib import Path
from typing import NamedTuple

from llm_build.core.digest import digest_of_file, digest_of_names, sha256_of_file
from llm_build.core.disk import NO_FILE
from llm_build.core.errors import StepError, UserError
from llm_build.core.fingerprint import installed_versions
from llm_build.core.names import is_inside
from llm_build.core.record import Output, Record
from llm_build.core.step import Step
from llm_build.core.step_io import Json

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
_BUILD_TYPE = "urn:llm-build:recipe:v1"
_BUILDER = "urn:llm-build"
NAME = "build.json"
SIGNATURE = "build.json.sig"
HASHES: dict[str, Callable[[Path], str]] = {
    "sha256": sha256_of_file,
    "blake3": lambda path: digest_of_file(path).partition(":")[2],
}


class Checked(NamedTuple):
    """File names of a folder by what became of them. ``extra``: nothing here speaks of them."""

    same: tuple[str, ...]
    changed: tuple[str, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    nbytes: int

    @property
    def intact(self) -> bool:
        return not (self.changed or self.missing or self.extra)


def statement(
    recipe: Mapping[str, Json],
    made: list[tuple[Step, Record]],
    outputs: Mapping[str, Output],
    sha256_of: Callable[[str], str],
) -> Json:
    """The statement about ``outputs``, made by the steps and records ``made``; ``sha256_of`` a blob's digest."""
    return {
        "_type": STATEMENT,
        "subject": [
            {"name": name, "digest": {"sha256": sha256_of(output.digest), **_digest(output.digest)}}
            for name, output in sorted(outputs.items())
        ],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": _BUILD_TYPE,
                "externalParameters": {"recipe": recipe},
                "internalParameters": {"tools": _tools(record for _, record in made)},
                "resolvedDependencies": [
                    {"name": f"{step.name}/{name}", "digest": _digest(output.digest)}
                    for step, record in made
                    if step.watch
                    for name, output in sorted(record.outputs.items())
                ],
            },
            "runDetails": {
                "builder": {"id": _BUILDER, "version": {"llm-build": _own_version()}},
                "metadata": {
                    "startedOn": _time(min(record.started for _, record in made)),
                    "finishedOn": _time(max(record.started + record.seconds for _, record in made)),
                },
                "byproducts": [_byproduct(step, record) for step, record in made],
            },
        },
    }


@cache
def _own_version() -> str:
    """Of llm-build: a sweep writes many statements."""
    return installed_versions().get("llm-build", "absent")


def subjects(document: Json) -> list[str]:
    """File names that an earlier statement speaks of, less those that lead out of its folder; none when it is not
    one."""
    try:
        return [name for subject in document["subject"] if is_inside(name := subject["name"])]
    except (KeyError, TypeError):
        return []


def check_files(folder: Path, document: Json) -> Checked:
    """Hashes every file of a folder and compares with a statement, which must have passed check_statement.

    Raises UserError for a file that may not be read."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
    wanted = {subject["name"]: subject["digest"] for subject in document["subject"]}
    present = {name: path for name, path in files.items() if name in wanted and path.is_file()}
    same = [name for name, path in present.items() if has_digests(path, wanted[name])]
    return Checked(
        same=tuple(sorted(same)),
        changed=tuple(sorted(present.keys() - set(same))),
        missing=tuple(sorted(wanted.keys() - present.keys())),
        extra=tuple(sorted(files.keys() - wanted.keys() - {NAME, SIGNATURE})),
        nbytes=sum(path.stat().st_size for path in present.values()),
    )


def has_digests(path: Path, digests: Mapping[str, str]) -> bool:
    """Whether it is a file with these digests. UserError where it may not be read."""
    try:
        return all(HASHES[name](path) == digest for name, digest in digests.items())
    except OSError as error:
        if error.errno in (*NO_FILE, ENOENT):
            return False
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def check_statement(document: Json, path: Path) -> None:
    """Raises StepError for what is no statement of ours, and for one that contradicts itself: the digest of the step
    that made the files, and that of the checkpoint, follow from digests that it gives one by one."""
    try:
        files = {subject["name"]: subject["digest"] for subject in document["subject"]}
        known = document["_type"] == STATEMENT and document["predicateType"] == PREDICATE
        steps = document["predicate"]["runDetails"]["byproducts"]
        made = {step["name"]: step["digest"]["sha256"] for step in steps}
        together = _digest(digest_of_names({name: f"blake3:{digest['blake3']}" for name, digest in files.items()}))
        checkpoint = checkpoint_digest(steps)
        dependencies = document["predicate"]["buildDefinition"]["resolvedDependencies"]
        tensors = dependencies_below("tensor", dependencies)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StepError(f"{path} is no provenance of llm-build: {type(error).__name__}: {error}", "build") from error
    if not known or any(not set(digest) <= HASHES.keys() or not digest for digest in files.values()):
        raise StepError(f"{path} is no provenance of llm-build: another type, or digests of another kind", "build")
    if outside := [str(name) for name in files if not is_inside(name)]:
        raise StepError(f"{path} speaks of files outside its folder: {', '.join(outside[:3])}", "build")
    if together["sha256"] not in made.values():
        raise StepError(f"{path} contradicts itself: no step of it made the files that it lists", "build")
    if checkpoint and checkpoint != digest_of_names(tensors):
        raise StepError(f"{path} contradicts itself: its tensors are not those of its checkpoint", "build")


def checkpoint_digest(byproducts: Iterable[Json]) -> str:
    """The digest of the checkpoint, which the step that read it notes; empty where there is no such step."""
    noted = (step["annotations"].get("facts", {}).get("checkpoint") for step in byproducts)
    return next((str(digest) for digest in noted if digest), "")


def dependencies_below(kind: str, dependencies: Iterable[Json]) -> dict[str, str]:
    """{name: digest} of the "tensor" or "file" dependencies, which are called <step>/<kind>/<name>."""
    digests = {}
    for each in dependencies:
        _step, _, output = each["name"].partition("/")
        if output.startswith(f"{kind}/"):
            digests[output.removeprefix(f"{kind}/")] = f"blake3:{each['digest']['blake3']}"
    return digests


def _byproduct(step: Step, record: Record) -> Json:
    """A step: the digest of all its outputs, its key, its figures. The key of a step that watches files holds inode
    numbers and times of this machine, so it is left out."""
    digest = digest_of_names({name: output.digest for name, output in record.outputs.items()})
    annotations: dict[str, Json] = {"startedOn": _time(record.started), "seconds": round(record.seconds, 3)}
    if not step.watch:
        annotations["key"] = record.key
    if record.facts:
        annotations["facts"] = dict(record.facts)
    if record.warnings:
        annotations["warnings"] = list(record.warnings)
    return {"name": step.name, "digest": _digest(digest), "annotations": annotations}


def _tools(records: Iterable[Record]) -> dict[str, str]:
    versions: dict[str, str] = {}
    for record in records:
        versions.update(record.parts["tools"])
    return dict(sorted(versions.items()))


def _digest(digest: str) -> dict[str, str]:
    algorithm, _, hex_ = digest.partition(":")
    return {algorithm: hex_}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
