"""Names of objects in a shared store, which is laid out like a local one, and what may be wrong with them.

VERSION                   the layout's number
records/<k2>/<key>.json   manifests, written after their blobs; their mtimes are 0
blobs/<d2>/<hex>          bytes by blake3 digest
provenance/<key>/<file>   build.json of an artifact by the key of its step, for who has no records of the other steps
uploads/<key>.json        the manifest of an upload that has begun: gc keeps what it names
GC                        while a gc removes blobs: when it last looked (unix time, seconds)
"""

from __future__ import annotations

from collections.abc import Mapping

from llm_build.core.record import Output, Record, decode_record, encode_record
from llm_build.core.seals import Seals
from llm_build.remote.signatures import signature_line

VERSION = "VERSION"
GC = "GC"
RECORDS, BLOBS, UPLOADS, PROVENANCE = "records", "blobs", "uploads", "provenance"


class Damaged(Exception):
    """An object that is there and is not what its name or its manifest says."""


def record_name(key: str) -> str:
    return f"{RECORDS}/{key[:2]}/{key}.json"


def upload_name(key: str) -> str:
    return f"{UPLOADS}/{key}.json"


def provenance_name(key: str, file: str) -> str:
    return f"{PROVENANCE}/{key}/{file}"


def blob_name(digest: str) -> str:
    hex_ = digest.rpartition(":")[2]
    return f"{BLOBS}/{hex_[:2]}/{hex_}"


def key_of(name: str) -> str:
    """The key of a manifest's or an upload's name."""
    return name.rpartition("/")[2].removesuffix(".json")


def blobs_of(outputs: Mapping[str, Output]) -> dict[str, tuple[str, Output]]:
    """{digest: (an output's name, the output)} of what lies in the store; slices of other files do not."""
    return {output.digest: (name, output) for name, output in outputs.items() if not output.of}


def manifest(record: Record, seals: Seals) -> bytes:
    """A record as every machine writes it, and who writes it."""
    outputs = {name: output._replace(mtime_ns=0) for name, output in record.outputs.items()}
    data = encode_record(record._replace(outputs=outputs))
    body = data.partition(b"\n")[0]
    return data + seals.line(body) + signature_line(body, seals.folder)


def read_manifest(raw: bytes, key: str) -> Record:
    """Raises Damaged."""
    record = decode_record(raw, key)
    if record is None:
        raise Damaged("it is not a whole manifest")
    return record
