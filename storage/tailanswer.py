"""The answer to "what is in this shard": one snapshot of some tables (LOG L14), by its owner or from the store.

Pure. An owner calls `tail_answer` through `storage.shard.Shard.tail`, a query node whose owner is silent through
`storage.storereader` (L15). `storage.kepttail` puts answers together with what was kept of earlier ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from storage.cutoffs import BY_AGE, Cutoffs
from storage.schema import OP_COLUMN, TIME_COLUMN, Role, TailBatch

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from storage.deletes import PendingDelete
    from storage.schema import DataFile, PartitionSnapshot, Table
    from storage.shardstate import PartitionState, ShardState, TailEntry


@dataclass(frozen=True, slots=True)
class TailWanted:
    """A question: table ids with the columns wanted of each (storage names; None is all; keys and ops always come).

    What the asker kept belongs to ``from_epoch`` and reaches to ``from_sequence``: only what is newer is needed. The
    filters leave out rows that cannot fit, not all of them: the asker filters again. Times are in ns, inclusive.
    The asker has the tables' file lists as of the Checkpoint ``known_checkpoint`` (0: of none).
    """

    tables: Mapping[int, Collection[str] | None]
    from_epoch: int = 0
    from_sequence: int = 0
    time_low: int | None = None
    time_high: int | None = None
    tag_equals: Mapping[str, str] = field(default_factory=dict)
    known_checkpoint: int = 0

    @property
    def whole(self) -> bool:
        """Whether all rows and columns are asked for: only then may an answer be kept."""
        narrowed = self.time_low is not None or self.time_high is not None or bool(self.tag_equals)
        return not narrowed and all(columns is None for columns in self.tables.values())


@dataclass(frozen=True, slots=True)
class TailPartition:
    """One partition: its DataFiles, pending deletes and `PartitionState.changes_from` as of the Checkpoint, and when it
    last changed."""

    table_id: int
    partition: int
    changed_at: int
    files: tuple[DataFile, ...]
    pending: tuple[PendingDelete, ...] = ()
    changes_from: int = 0


@dataclass(frozen=True, slots=True)
class TailRows:
    """Rows of one entry of the Log: ``sequence`` is its object."""

    table_id: int
    partition: int
    sequence: int
    batch: TailBatch


@dataclass(frozen=True, slots=True)
class TailAnswer:
    """One moment of one shard: everything up to the object ``position`` is in it.

    Files stand for what is at or below k (``covered``), ``rows`` for what is above ``from_sequence``: that is what was
    asked for if the epoch is the asker's and k is not above it, else k. ``revision`` is at least the highest that
    any of the rows rests on: a plan that is older is made again. ``files_known``: the Checkpoint is the one whose
    lists the asker has, so there are none in ``partitions``, of files or deletes; a Checkpoint's lists never change.
    """

    log_id: int
    epoch: int
    position: int
    checkpoint_seq: int
    covered: int
    revision: int
    from_sequence: int
    partitions: tuple[TailPartition, ...]
    rows: tuple[TailRows, ...]
    cutoffs: Cutoffs
    dropped: frozenset[int]
    files_known: bool = False


@dataclass(frozen=True, slots=True)
class ShardSnapshot:
    """What a query reads of one shard: `PartitionSnapshot`s by table id; a dropped table has none (L31)."""

    log_id: int
    epoch: int
    position: int
    revision: int
    tables: Mapping[int, tuple[PartitionSnapshot, ...]]
    cutoffs: Cutoffs
    dropped: frozenset[int]


def tail_answer(
    state: ShardState, tables: Sequence[Table], wanted: TailWanted, revision: int, position: int
) -> TailAnswer:
    """The answer of a state as it is now. ``tables`` are those wanted, at the newest schema known here."""
    newer = wanted.from_epoch == state.epoch and state.k <= wanted.from_sequence <= position
    floor = wanted.from_sequence if newer else state.k  # L14: what was kept from before counts only above k
    files_known = 0 < wanted.known_checkpoint == state.checkpoint_seq
    partitions: list[TailPartition] = []
    rows: list[TailRows] = []
    for table in tables:
        for number, part in _partitions(state, table):
            listed = ((), (), 0) if files_known else (part.files, part.pending, part.changes_from)
            partitions.append(TailPartition(table.id, number, part.changed_at, *listed))
            for entry in _above(part, floor):
                batch = _narrowed(table, entry, wanted)
                if batch is not None:
                    rows.append(TailRows(table.id, number, entry.sequence, batch))
    dropped = frozenset(table.id for table in tables if table.id in state.drops)
    return TailAnswer(
        state.log_id, state.epoch, position, state.checkpoint_seq, state.k, revision, floor,
        tuple(partitions), tuple(rows), _cutoffs(state, tables), dropped, files_known,
    )  # fmt: skip


def _cutoffs(state: ShardState, tables: Sequence[Table]) -> Cutoffs:
    """Of all databases, and of these tables: there may be very many (L36)."""
    keys = ((table.id, number) for table in tables for number in (BY_AGE, *(p.id for p in table.partitions)))
    found = {key: state.table_cutoffs[key] for key in keys if key in state.table_cutoffs}
    return Cutoffs(dict(state.cutoffs), found)


def _partitions(state: ShardState, table: Table) -> Iterator[tuple[int, PartitionState]]:
    """The table's partitions here, none if it was dropped: each shard decides by its own Log (L31)."""
    if table.id in state.drops:
        return
    for partition in table.partitions:
        part = state.partitions.get((table.id, partition.id))
        if part is not None:
            yield partition.id, part


def _above(part: PartitionState, floor: int) -> Sequence[TailEntry]:
    """The entries above ``floor``, in order: found from the end, since mostly few are new."""
    start = len(part.tail)
    while start > 0 and part.tail[start - 1].sequence > floor:
        start -= 1
    return part.tail[start:]


def _narrowed(table: Table, entry: TailEntry, wanted: TailWanted) -> TailBatch | None:
    """Of an entry the columns that are wanted, from the first row that may fit to the last (None: no row does)."""
    if wanted.whole or entry.batch.delete is not None:
        return entry.batch
    low = entry.time_low if wanted.time_low is None else wanted.time_low
    high = entry.time_high if wanted.time_high is None else wanted.time_high
    if entry.time_low > high or entry.time_high < low:
        return None
    batch = entry.batch
    fits = _fitting(table, batch.rows, low, high, wanted.tag_equals)
    if len(fits) == 0:
        return None
    first, last = int(fits[0]), int(fits[-1])
    rows = _projected(table, batch.rows, wanted.tables[table.id]).slice(first, last - first + 1)
    return TailBatch(batch.first_offset + first, rows)


def _fitting(
    table: Table, rows: pa.RecordBatch, low: int, high: int, tag_equals: Mapping[str, str]
) -> npt.NDArray[np.intp]:
    """The numbers of the rows in a range of time with these tags; "" also means a tag that is absent."""
    times = rows.column(TIME_COLUMN).view(pa.int64()).to_numpy()
    fits = (times >= low) & (times <= high)
    for name, value in tag_equals.items():
        column = table.by_storage_name.get(name)
        if value and column is not None and column.role is Role.TAG:
            fits &= _equal(rows, name, value)
    return np.flatnonzero(fits)


def _equal(rows: pa.RecordBatch, name: str, value: str) -> npt.NDArray[np.bool_]:
    index = rows.schema.get_field_index(name)
    if index < 0:
        return np.zeros(rows.num_rows, dtype=np.bool_)
    array = rows.column(index)
    if not pa.types.is_dictionary(array.type):
        found = pc.equal(array, value)
    else:
        found = pc.equal(array.dictionary, value).take(array.indices)
    equal: npt.NDArray[np.bool_] = found.fill_null(False).to_numpy(zero_copy_only=False)
    return equal


def _projected(table: Table, rows: pa.RecordBatch, columns: Collection[str] | None) -> pa.RecordBatch:
    """The key and the op always come: rows are folded by them (FORMAT F11)."""
    if columns is None:
        return rows
    keys = {TIME_COLUMN, OP_COLUMN, *(tag.storage_name for tag in table.tags)}
    return rows.select([name for name in rows.schema.names if name in keys or name in columns])
