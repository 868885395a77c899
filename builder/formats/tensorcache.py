"""tensor-cache.json: where each stored tensor lies; older readers call the same content ndarray-cache.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from builder.core.step import Json


def tensor_cache(shards: Sequence[Json], total_parameters: int) -> dict[str, Any]:
    """Join the shards' entries, in order. Bits per parameter count everything stored over the weights of the model."""
    records = [record for shard in shards for record in shard["records"]]
    nbytes = sum(record["nbytes"] for record in records)
    return {
        "metadata": {
            "ParamSize": len(records),
            "ParamBytes": nbytes,
            "BitsPerParam": nbytes * 8 / total_parameters,
        },
        "records": list(shards),
    }
