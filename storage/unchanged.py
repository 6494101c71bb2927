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

    from storage.frames import Entry
    from storage.schema import Table
    from storage.shardstate import PartitionState


def changed_since(
    table: Table,
    rows: pa.RecordBatch,
    since: int,
    state: PartitionState | None,
    under_way: Iterable[tuple[Entry, pa.RecordBatch]],
) -> bool:
    """Whether one of the keys of ``rows`` may have been written or deleted by an object above ``since``.

    ``under_way`` are entries of the partition that go into the Log before these, with their rows.
    """
    newer = [(entry.time_low, entry.time_high, batch) for entry, batch in under_way]
    if state is not None:
        if state.filed_at > since:
            return True  # in a file it cannot be told any more what came after the snapshot
        newer += [(e.time_low, e.time_high, e.batch.rows) for e in state.tail if e.sequence > since]
    times = rows.column(TIME_COLUMN).view(pa.int64()).to_numpy()
    low, high = int(times.min()), int(times.max())
    meeting = [batch for first, last, batch in newer if first <= high and last >= low]
    if any(not batch.num_rows for batch in meeting):
        return True  # a range delete: whether it takes one of these rows is not looked into
    return bool(meeting) and share_key(table, [rows], meeting)


def share_key(table: Table, some: Sequence[pa.RecordBatch], others: Sequence[pa.RecordBatch]) -> bool:
    """Whether a key stands in both."""
    ours, theirs = _keys(table, some), _keys(table, others)
    apart = fold(table, ours).num_rows + fold(table, theirs).num_rows
    return bool(fold(table, [*ours, *theirs]).num_rows < apart)


def _keys(table: Table, batches: Sequence[pa.RecordBatch]) -> list[TailBatch]:
    key = {TIME_COLUMN, *(tag.storage_name for tag in table.tags)}
    return [TailBatch(0, b.select([name for name in b.schema.names if name in key])) for b in batches]
