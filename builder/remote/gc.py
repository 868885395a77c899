"""Free what nothing refers to any more in a shared store. Others may be uploading meanwhile.

A blob goes when no manifest names it and it is older than GRACE_S. That alone is not enough: an upload may find an old
blob that nothing names, and refer to it. So each tells the other first. An upload writes what it will refer to
(uploads/), and then looks whether a gc is at work (GC) and waits; a gc writes GC, and then looks at uploads and at new
manifests. Whoever comes second sees the other."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from functools import partial
from typing import NamedTuple

from llm_build.core.errors import UserError
from llm_build.remote.bucket import PARTIAL, Bucket, Entry, Missing
from llm_build.remote.layout import (  # fmt: skip
    BLOBS,
    GC,
    PROVENANCE,
    RECORDS,
    UPLOADS,
    Damaged,
    blob_name,
    blobs_of,
    key_of,
    read_manifest,
)

GRACE_S = 24 * 3600.0  # an upload takes less
_LEASE_S = 600.0  # a gc that wrote GC so long ago is dead; one that lives removes for half of that, and writes it again
_BATCH = 200


class Freed(NamedTuple):
    """What was freed, or would be."""

    records: tuple[str, ...]  # keys
    blobs: int
    nbytes: int
    kept_nbytes: int


def gc(
    bucket: Bucket,
    threads: int,
    max_age_s: float | None = None,
    roots: Collection[str] = (),
    dry_run: bool = True,
    grace_s: float = GRACE_S,
) -> Freed:
    """Drop manifests written more than ``max_age_s`` ago (a push writes them anew), then blobs that no manifest names.
    Keys in ``roots`` stay. Ages are by the clocks of the store and of this machine. AccessDenied, Unreachable,
    UserError."""
    now = time.time()
    entries = bucket.entries("")
    blobs = [e for e in entries if e.name.startswith(f"{BLOBS}/")]
    records = [e for e in entries if e.name.startswith(f"{RECORDS}/")]
    stays = {e.name for e in records if not _is_old(e, now, max_age_s) or key_of(e.name) in roots}
    goes = sorted({e.name for e in records} - stays)
    named = _named(bucket, stays, threads) | _uploading(bucket, now, grace_s)
    loose = [e for e in blobs if e.name not in named and _is_old(e, now, grace_s)]
    if not dry_run:
        keys = {key_of(name) for name in goes}
        left = [e.name for e in entries if e.name.startswith(f"{PROVENANCE}/") and e.name.split("/")[1] in keys]
        stuck = [e.name for e in entries if _is_left_over(e) and _is_old(e, now, grace_s)]
        bucket.remove([*goes, *left, *stuck])  # manifests before their blobs: there is never one without its bytes
        loose = _remove_blobs(bucket, loose, stays, threads, grace_s)
    freed = sum(e.nbytes for e in loose)
    return Freed(tuple(key_of(name) for name in goes), len(loose), freed, sum(e.nbytes for e in blobs) - freed)


def is_running(bucket: Bucket) -> bool:
    """Whether a gc is removing blobs. An upload that has written what it will refer to waits until it is not."""
    try:
        return abs(time.time() - float(bucket.read(GC))) < _LEASE_S
    except (Missing, ValueError):
        return False


def _is_old(entry: Entry, now: float, age_s: float | None) -> bool:
    return age_s is not None and now - entry.modified > age_s


def _is_left_over(entry: Entry) -> bool:
    return entry.name.endswith(PARTIAL) or entry.name.startswith(f"{UPLOADS}/")


def _named(bucket: Bucket, names: Iterable[str], threads: int) -> set[str]:
    """Blobs that manifests name."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(threads) as pool:
        return set().union(*pool.map(partial(_blobs_named, bucket), names))


def _blobs_named(bucket: Bucket, name: str) -> set[str]:
    try:
        record = read_manifest(bucket.read(name), key_of(name))
    except (Missing, Damaged):
        return set()
    return {blob_name(digest) for digest in blobs_of(record.outputs)}


def _uploading(bucket: Bucket, now: float, grace_s: float) -> set[str]:
    """Blobs that uploads are about to refer to."""
    names = [e.name for e in bucket.entries(UPLOADS) if not _is_old(e, now, grace_s)]
    return set().union(*(_blobs_named(bucket, name) for name in names))


def _remove_blobs(bucket: Bucket, loose: list[Entry], known: set[str], threads: int, grace_s: float) -> list[Entry]:
    """Those of ``loose`` that were removed. ``known``: manifests that name none of them. UserError while another gc
    runs."""
    if is_running(bucket):
        raise UserError("another gc is at work in the shared store", "try again when it is done")
    removed: list[Entry] = []
    try:
        while loose:
            now = time.time()
            bucket.write(GC, str(now).encode())
            named = _uploading(bucket, now, grace_s)  # before the manifests: an upload goes from the one to the other
            fresh = {e.name for e in bucket.entries(RECORDS)} - known
            named |= _named(bucket, fresh, threads)
            known |= fresh
            loose = [e for e in loose if e.name not in named]
            while loose and time.time() - now < _LEASE_S / 2:
                batch, loose = loose[:_BATCH], loose[_BATCH:]
                bucket.remove([e.name for e in batch])
                removed += batch
    finally:
        bucket.remove([GC])
    return removed
