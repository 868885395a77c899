"""`build doctor --store`: read every byte of a store and compare it with what the records say."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from builder.core.digest import digest_of_file
from builder.core.filestore import FileStore
from builder.core.gc import blob_files, records


class Checked(NamedTuple):
    """``damaged`` blobs (hex digests), ``missing`` blobs ("key: output"), ``garbage`` manifests (keys); ``orphans`` are
    blobs without a record, which is no fault (`build gc` frees them)."""

    records: int
    blobs: int
    nbytes: int
    damaged: tuple[str, ...]
    missing: tuple[str, ...]
    garbage: tuple[str, ...]
    orphans: int

    @property
    def whole(self) -> bool:
        return not (self.damaged or self.missing or self.garbage)


def check(store: FileStore, progress: Callable[[int, int], None] | None = None, repair: bool = False) -> Checked:
    """Hash every blob. ``progress(done, total)`` in bytes. ``repair`` removes what is damaged, so that the next build
    makes it again."""
    files = {path.name: path for path in blob_files(store)}
    total, done = sum(path.stat().st_size for path in files.values()), 0
    damaged = []
    for name, path in files.items():
        status = os.stat(path)
        if digest_of_file(path).rpartition(":")[2] != name:
            damaged.append(name)
            if repair:
                store.drop(path, status)
        done += status.st_size
        if progress:
            progress(done, total)
    missing, garbage, named, count = [], [], set(), 0
    for path, record in records(store):
        count += 1
        if record is None:
            garbage.append(path.stem)
            if repair:
                path.unlink(missing_ok=True)
            continue
        for output_name, output in record.outputs.items():
            hex_ = output.digest.rpartition(":")[2]
            named.add(hex_)
            if not output.of and hex_ not in files:
                missing.append(f"{path.stem}: {output_name}")
    orphans = len(files.keys() - named)
    return Checked(count, len(files), total, tuple(damaged), tuple(missing), tuple(garbage), orphans)
