"""What a shard refuses before it sends anything (LOG L4, L7, L23, L26, L30, L31), and what it answers of what it sent.

Driven by `storage.shard`.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from storage.deletes import DELETE_BYTES_MAX, DELETES_MAX, NAME_BYTES, WAITING_BYTES_MAX
from storage.errors import (
    CatalogBehind,
    LogBacklogFull,
    NoSuchTable,
    OutcomeUnknown,
    RequestTooLarge,
    RowsChanged,
    StorageError,
    WriteRefused,
)
from storage.frames import NO_WRITE_ID
from storage.shardstate import PartitionState
from storage.unchanged import changed_since

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from storage.appends import Append, EncodedAppend
    from storage.frames import Entry
    from storage.logdriver import Position
    from storage.schema import Table
    from storage.shardlimits import ShardLimits
    from storage.shardstate import ShardState

    Queued = tuple[Entry, pa.RecordBatch]
    Tables = Callable[[int], Table | None]

BACKLOG_SECONDS_MIN: Final = 30.0
"""Age never refuses appends sooner: a checkpoint that was due at once may take as long as this."""
_NOTHING: Final = PartitionState()


def check_first(state: ShardState, tables: Tables, parts: Sequence[Append | EncodedAppend]) -> None:
    """Raises WriteRefused, CatalogBehind, NoSuchTable, LogBacklogFull, RequestTooLarge."""
    for part in parts:
        if part.write_id != NO_WRITE_ID and part.born < state.horizon:
            raise WriteRefused(
                f"shard {state.log_id}: a write born at {part.born} is below the horizon {state.horizon}"
            )
        table = tables(part.table_id)
        if table is None or table.version < part.schema_version:  # L30: a file of ours would lack the new columns
            raise CatalogBehind(
                f"shard {state.log_id}: table {part.table_id} at version {part.schema_version} is not known here yet"
            )
        if table.deleted or part.table_id in state.drops:  # L30, L31: ids are never used again
            raise NoSuchTable(f"table {table.name!r} (id {table.id}) was dropped")
    deletes = [part for part in parts if part.is_delete]
    if deletes:
        _check_deletes(state, deletes)


def _check_deletes(state: ShardState, parts: Sequence[Append | EncodedAppend]) -> None:
    """L23: deletes that wait for compaction cost every query and Checkpoint; there is an end to them."""
    more = "wait for compaction to carry them out; let it (runnel compact), or try again later"
    incoming = 0
    for part in parts:
        if part.size_bytes > DELETE_BYTES_MAX:
            raise RequestTooLarge(f"a delete of {part.size_bytes} bytes: at most {DELETE_BYTES_MAX} at once")
        place = state.partitions.get((part.table_id, part.partition), _NOTHING)
        waiting = len(place.pending) + sum(entry.batch.delete is not None for entry in place.tail)
        if waiting >= DELETES_MAX:
            raise LogBacklogFull(f"shard {state.log_id}: {waiting} deletes of table {part.table_id} {more}")
        incoming += part.size_bytes + NAME_BYTES * len(place.files)
    held = sum(_waiting_bytes(place) for place in state.partitions.values())
    if held and held + incoming > WAITING_BYTES_MAX:
        raise LogBacklogFull(f"shard {state.log_id}: deletes of {held} bytes {more}")


def _waiting_bytes(place: PartitionState) -> int:
    """Of a partition's deletes; those of the tail will wait for every file that is there."""
    tail = [entry.batch.delete for entry in place.tail if entry.batch.delete is not None]
    found = sum(one.bytes for one in place.pending)
    return found + sum(one.bytes + NAME_BYTES * len(place.files) for one in tail)


def check_unchanged(
    state: ShardState,
    tables: Tables,
    parts: Sequence[tuple[Append | EncodedAppend, Queued]],
    under_way: Sequence[Queued],
) -> None:
    """L26: decided in commit order: what is ``under_way`` goes into the Log before these parts. Raises RowsChanged."""
    for part, (entry, rows) in parts:
        place, table = _place(entry), tables(entry.table_id)
        if part.unchanged_since is None or table is None:
            continue
        before = [one for one in under_way if _place(one[0]) == place]
        if changed_since(table, rows, part.unchanged_since, state.partitions.get(place), before):
            raise RowsChanged(
                f"shard {state.log_id}: rows of table {table.name!r} were written again while a statement that deletes "
                "or updates them was carried out; nothing of it was written here: try again"
            )


def _place(entry: Entry) -> tuple[int, int]:
    return entry.table_id, entry.partition


def is_backlogged(state: ShardState, limits: ShardLimits) -> bool:
    """L23: at twice a bound appends are refused until the checkpoint has caught up."""
    return (
        state.log_bytes_above_k > 2 * limits.log_bytes
        or state.objects_above_k > 2 * limits.checkpoint_objects
        or age_seconds(state) > max(2 * limits.checkpoint_seconds, BACKLOG_SECONDS_MIN)
    )


def backlog(state: ShardState) -> LogBacklogFull:
    """Why they are refused."""
    return LogBacklogFull(
        f"shard {state.log_id}: {state.objects_above_k} objects ({state.log_bytes_above_k} bytes, the oldest "
        f"{age_seconds(state):.0f} s old) wait for a checkpoint; one is under way, try again"
    )


def age_seconds(state: ShardState) -> float:
    """Of the oldest object above k; 0 when there is none, or when a clock went back."""
    oldest = state.oldest_above_k_ms
    return 0.0 if oldest is None else max(0.0, time.time() - oldest / 1000)


async def first_offsets(outcomes: Sequence[int | asyncio.Future[Position] | None]) -> list[int]:
    """All first offsets, or the error that says most: what may stand must not be called failed (L6)."""
    offsets: list[int] = []
    errors: list[StorageError] = []
    for at in outcomes:
        assert at is not None, "what is sent is known at once"
        try:
            offsets.append(at if isinstance(at, int) else (await asyncio.shield(at)).entry.base_offset)
        except StorageError as error:
            errors.append(error)
    if errors:
        raise next((e for e in errors if isinstance(e, OutcomeUnknown)), errors[0])
    return offsets
