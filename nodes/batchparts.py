"""A Batch as the parts of a write, one for each partition that it touches (LOG L8). Used by every Backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.keys import route
from storage.schema import NO_ROWS
from storage.shard import Append

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import pyarrow as pa

    from nodes.backend import Batch
    from storage.frames import WriteId
    from storage.schema import Partition


def parts_of(
    batch: Batch, write_id: Callable[[Partition], WriteId], born: Callable[[int], int], *, share: bool = False
) -> Iterator[tuple[int, Append]]:
    """Log id and part, for each partition; ``born`` is asked by Log id. ``share`` as `storage.keys.route` has it."""
    for partition, rows in _routed(batch, share):
        since = None if batch.unchanged_since is None else batch.unchanged_since[partition.id]
        yield (
            partition.log_id,
            Append(batch.table, partition.id, rows, write_id(partition), born(partition.log_id), since, batch.delete),
        )


def _routed(batch: Batch, share: bool) -> Iterator[tuple[Partition, pa.RecordBatch]]:
    """A range delete goes to every partition."""
    if batch.delete is not None:
        return ((partition, NO_ROWS) for partition in batch.table.partitions)
    return route(batch.table, batch.rows, batch.series, share=share)
