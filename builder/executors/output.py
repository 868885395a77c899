"""Where a running step writes: the real ``Out`` of a worker."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from llm_build.core.errors import StepError
from llm_build.core.filestore import FileStore
from llm_build.core.json_text import without_nonfinite
from llm_build.core.record import Output
from llm_build.core.step_io import File, Json
from llm_build.core.task import StepTask, TaskProgress, TaskReport, TaskWarned

_PROGRESS_EVERY_S = 0.05


class StoreOut:
    def __init__(self, task: StepTask, store: FileStore, report: Callable[[TaskReport], None]) -> None:
        self.context: Mapping[str, Json] = task.context
        self.threads = task.resources.cpu
        self.memo = store.tensors
        self.facts: dict[str, Json] = {}
        self.warnings: list[str] = []
        self._task = task
        self._store = store
        self._report = report
        self._folder = task.scratch / "out"
        self._written: dict[str, Path] = {}
        self._declared: dict[str, Output] = {}
        self._reported = 0.0

    def path(self, name: str) -> Path:
        path = self._folder / self._checked(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._written[name] = path
        return path

    def link(self, name: str, source: File) -> None:
        name = self._checked(name)
        status = source.path.stat()
        whole = source.offset == 0 and status.st_size == source.nbytes
        if whole and source.path == self._store.path(source.digest):
            self._declared[name] = Output(source.digest, source.nbytes, status.st_mtime_ns)
            return
        with open(source.path, "rb") as file, open(self.path(name), "wb") as copy:
            file.seek(source.offset)
            _copy(file.read, copy.write, source.nbytes)

    def slice(self, name: str, digest: str, nbytes: int, of: str, offset: int) -> None:
        assert of.startswith(("watch:", "output:")), f"slice {name} of {of!r}"
        self._declared[self._checked(name)] = Output(digest, nbytes, 0, of, offset)

    def fact(self, name: str, value: Json) -> None:
        self.facts[name] = without_nonfinite(value)

    def warn(self, message: str) -> None:
        self.warnings.append(message)
        self._report(TaskWarned(self._task.id, message))

    def progress(self, done: int, total: int, unit: str = "", label: str = "") -> None:
        now = time.monotonic()
        if now - self._reported >= _PROGRESS_EVERY_S or done == total:
            self._reported = now
            self._report(TaskProgress(self._task.id, done, total, unit, label))

    def finish(self) -> dict[str, Output]:
        """Move what was written into the store. StepError when a promised output is not there."""
        for name, path in self._written.items():
            if not path.is_file():
                raise StepError(f"the step did not write its output {name!r}")
        outputs = {**self._declared, **self._store.ingest(self._written, self.threads)}
        for name, output in self._declared.items():
            kind, _, of = output.of.partition(":")
            assert kind != "output" or of in outputs, f"slice {name} of unknown output {of}"
        return outputs

    def _checked(self, name: str) -> str:
        parts = name.split("/")
        assert not {"", ".", ".."} & set(parts), f"output name {name!r}"
        assert name not in {**self._written, **self._declared}, f"output {name!r} twice"
        return name


def _copy(read: Callable[[int], bytes], write: Callable[[bytes], int], nbytes: int) -> None:
    while nbytes > 0:
        chunk = read(min(nbytes, 1 << 20))
        if not chunk:
            raise StepError("a file that was to be linked is shorter than it was")
        write(chunk)
        nbytes -= len(chunk)
