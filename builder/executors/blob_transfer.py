"""The shared store as the coordinator uses it: what steps elsewhere read goes there, what they made comes from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from llm_build.core.errors import UserError
from llm_build.core.filestore import FileStore
from llm_build.core.record import Output
from llm_build.core.task import StepResult

if TYPE_CHECKING:
    from llm_build.remote.location import Location
    from llm_build.remote.store import SharedStore


def location_of(store: FileStore) -> Location | None:
    """Where the shared store behind a store is, if there is one."""
    from llm_build.remote.store import SharedStore

    return store.location if isinstance(store, SharedStore) else None


def check_shared_store(store: FileStore, address: str) -> None:
    """Raises UserError where steps of several machines could not exchange what they make."""
    location = location_of(store)
    if address != "local" and location is not None and location.mode != "write":
        raise UserError(
            f"executor.address={address} with store.mode={location.mode}: the nodes of a cluster write "
            "what they make to store.remote; allowed: write",
            "build executor=ray store.mode=write, or executor=local",
        )


class BlobTransfer:
    """Blobs between this machine's store and the shared one; asks for each blob once."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._sent: set[str] = set()

    def send(self, blobs: Mapping[str, int]) -> None:
        new = {digest: Output(digest, nbytes) for digest, nbytes in blobs.items() if digest not in self._sent}
        if new:
            self._shared().upload(new)
            self._sent |= new.keys()

    def fetch(self, result: StepResult) -> StepResult:
        """The result of a node with its blobs in this store."""
        outputs = self._shared().download(result.outputs)
        self._sent |= {output.digest for output in outputs.values()}
        return result._replace(outputs=outputs)

    def _shared(self) -> SharedStore:
        from llm_build.remote.store import SharedStore

        assert isinstance(self._store, SharedStore)
        return self._store
