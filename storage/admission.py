"""What a shard refuses before it sends anything (LOG L4, L7, L23, L26, L30, L31). Pure; driven by `storage.shard`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from storage.deletes import DELETE_FILES_MAX, DELETES_MAX
from storage.errors import CatalogBehind, LogBacklogFull, NoSuchTable, RowsChanged, WriteRefused
from storage.frames import NO_WRITE_ID
from storage.unchanged import changed_since

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import pyarrow as pa

    from storage.appends import Append, EncodedAppend
    from storage.frames import Entry
    from storage.schema import Table
    from storage.shardlimits import ShardLimits
    from storage.shardstate import PartitionState, ShardState

    Queued = tuple[Entry, pa.RecordBatch]
    Tables = Callable[[int], Table | None]

BACKLOG_SECONDS_MIN: Final = 30.0
"""Age never refuses appends sooner: a checkpoint that was due at once may take as long as this."""


def check_first(state: ShardState, tables: Tables, parts: Sequence[Append | EncodedAppend]) -> None:
    """Raises WriteRefused, CatalogBehind, NoSuchTable, LogBacklogFull."""
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
        if part.is_delete:
            _check_deletes(state, part)


def _check_deletes(state: ShardState, part: Append | EncodedAppend) -> None:
    """L23: deletes that wait for compaction cost every query; there is an end to them."""
    place = state.partitions.get((part.table_id, part.partition))
    if place is None:
        return
    waiting = len(place.pending) + _in_tail(place)
    named = sum(_files_named(one) for one in state.partitions.values())
    if waiting >= DELETES_MAX or (named and named + len(place.files) > DELETE_FILES_MAX):
        raise LogBacklogFull(
            f"shard {state.log_id}: {waiting} deletes of table {part.table_id}, and of all tables those in {named} "
            "files, wait for compaction to carry them out; let it (runnel compact), or try again later"
        )


def _in_tail(place: PartitionState) -> int:
    return sum(entry.batch.delete is not None for entry in place.tail)


def _files_named(place: PartitionState) -> int:
    """How many names of files the next Checkpoint has for deletes of a partition, at most."""
    return sum(len(one.files) for one in place.pending) + _in_tail(place) * len(place.files)


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
