"""Whether rows of a partition were written since a snapshot of it: what a DELETE or UPDATE rests on (LOG L26).

Pure. `storage.shard` asks before it takes a part that was resolved to keys at a snapshot; what it says may be more than
what is true, never less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from storage.fold import fold
from storage.schema import TIME_COLUMN, TailBatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from storage.schema import Table
    from storage.shardstate import PartitionState


def changed_since(
    table: Table, rows: pa.RecordBatch, since: int, state: PartitionState | None, under_way: Iterable[pa.RecordBatch]
) -> bool:
    """Whether one of the keys of ``rows`` may have been written by an object above ``since``.

    ``under_way`` are rows of the partition that go into the Log before these.
    """
    newer = list(under_way)
    if state is not None:
        if state.filed_at > since:
            return True  # in a file it cannot be told any more what came after the snapshot
        newer += [entry.batch.rows for entry in state.tail if entry.sequence > since]
    low, high = _times(rows)
    meeting = [batch for batch in newer if _meets(batch, low, high)]
    return bool(meeting) and share_key(table, [rows], meeting)


def share_key(table: Table, some: Sequence[pa.RecordBatch], others: Sequence[pa.RecordBatch]) -> bool:
    """Whether a key stands in both."""
    ours, theirs = _keys(table, some), _keys(table, others)
    apart = fold(table, ours).num_rows + fold(table, theirs).num_rows
    return bool(fold(table, [*ours, *theirs]).num_rows < apart)


def _keys(table: Table, batches: Sequence[pa.RecordBatch]) -> list[TailBatch]:
    key = {TIME_COLUMN, *(tag.storage_name for tag in table.tags)}
    return [TailBatch(0, b.select([name for name in b.schema.names if name in key])) for b in batches]


def _times(rows: pa.RecordBatch) -> tuple[int, int]:
    times = rows.column(TIME_COLUMN).view(pa.int64()).to_numpy()
    return int(times.min()), int(times.max())


def _meets(rows: pa.RecordBatch, low: int, high: int) -> bool:
    first, last = _times(rows)
    return first <= high and last >= low
