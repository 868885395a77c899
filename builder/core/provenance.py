"""``build.json``: who made the files of an artifact from what, as an in-toto statement with SLSA provenance.

Shapes: https://in-toto.io/Statement/v1 and https://slsa.dev/spec/v1.0/provenance. Only times differ between two builds
of the same recipe: there are no paths, no host names and no process ids in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone

from builder.core.digest import digest_of_names
from builder.core.fingerprint import installed_versions
from builder.core.record import Output, Record
from builder.core.step import Json, Step

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:llm-build:recipe:v1"
BUILDER = "urn:llm-build"


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
                "buildType": BUILD_TYPE,
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
                "builder": {"id": BUILDER, "version": {"llm-build": installed_versions().get("llm-build", "absent")}},
                "metadata": {
                    "startedOn": _time(min(record.started for _, record in made)),
                    "finishedOn": _time(max(record.started + record.seconds for _, record in made)),
                },
                "byproducts": [_byproduct(step, record) for step, record in made],
            },
        },
    }


def subjects(document: Json) -> list[str]:
    """File names that an earlier statement speaks of; none when it is not one."""
    try:
        return [str(subject["name"]) for subject in document["subject"]]
    except (KeyError, TypeError):
        return []


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
    found: dict[str, str] = {}
    for record in records:
        found.update(record.parts["tools"])
    return dict(sorted(found.items()))


def _digest(digest: str) -> dict[str, str]:
    algorithm, _, hex_ = digest.partition(":")
    return {algorithm: hex_}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
