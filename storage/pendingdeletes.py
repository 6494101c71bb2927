"""Range deletes that wait for compaction, as Checkpoints list them with the files that they wait for (F17). Pure.

Driven by `storage.shardstate`. A delete at or below k names the files that were there before it; it is dropped when
none of them is left (LOG L25).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.checkpoint import Section, section_entry
from storage.deletes import PendingDelete, after_merge, decode_delete, encode_delete
from storage.errors import CatalogBehind, CorruptObject
from storage.filechange import changes_from_after

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from storage.deletes import RangeDelete
    from storage.filechange import FileChange
    from storage.frames import Entry
    from storage.schema import Table
    from storage.shardstate import PartitionState

    Key = tuple[int, int]
    Pending = Mapping[Key, tuple[PendingDelete, ...]]


def pending_after(state: PartitionState) -> tuple[PendingDelete, ...]:
    """What a Checkpoint of everything that is here leaves to be done: the tail's deletes in the files that are there.

    The files that it adds are made of the tail, in which they are carried out already.
    """
    found = list(state.pending)
    for entry in state.tail:
        delete = entry.batch.delete
        if delete is None:
            continue
        files = frozenset(f.path for f in state.files if delete.meets(f.time_low, f.time_high))
        if files:
            found.append(PendingDelete(entry.batch.first_offset, delete, files))
    return tuple(found)


def seen_from(state: PartitionState) -> int:
    """From which offset on all changes can be seen when a Checkpoint of everything that is here stands (L25).

    A delete of the tail that waits for no file is nowhere any more: it was carried out in the rows of the tail.
    """
    waiting = {one.order for one in pending_after(state)}
    gone = [e.batch.first_offset for e in state.tail if e.batch.delete is not None]
    return max([state.changes_from, *(order + 1 for order in gone if order not in waiting)])


def known_deletes(state: PartitionState) -> tuple[PendingDelete, ...]:
    """All that are not carried out in all files: what a merge must know (L21). Those of the tail name every file."""
    paths = frozenset(file.path for file in state.files)
    tail = [entry.batch for entry in state.tail]
    return (*state.pending, *(PendingDelete(b.first_offset, b.delete, paths) for b in tail if b.delete is not None))


def pending_after_changes(
    pending: Pending, changes: Sequence[FileChange]
) -> tuple[dict[Key, tuple[PendingDelete, ...]], dict[Key, int]]:
    """What is left to be done when ``changes`` stand, and from which offset on changes of partitions can be seen."""
    left, seen_from = dict(pending), changes_from_after(changes)
    for change in changes:
        key = change.partition
        if key not in left:
            continue
        left[key], done = after_merge(left[key], frozenset(file.path for file in change.removed))
        seen_from[key] = max([seen_from.get(key, 0), *(one.order + 1 for one in done)])
    return {key: found for key, found in left.items() if found}, {key: at for key, at in seen_from.items() if at}


def pending_sections(pending: Pending) -> tuple[Entry, ...]:
    """The section, which is left out when nothing waits."""
    rows = [
        {
            "table_id": key[0],
            "partition": key[1],
            "order": one.order,
            "delete": encode_delete(one.delete),
            "files": sorted(one.files),
        }
        for key, found in pending.items()
        for one in found
    ]
    return (section_entry(Section.DELETES, rows),) if rows else ()


def read_pending(
    rows: Sequence[Mapping[str, Any]],
    tables: Callable[[int], Table | None],
    only: Collection[int] | None,
    where: str,
) -> dict[Key, tuple[PendingDelete, ...]]:
    """The reverse of `pending_sections`, of the tables ``only``.

    Raises CorruptObject, UnsupportedFormat, and CatalogBehind for a tag that is not known here yet.
    """
    found: dict[Key, list[PendingDelete]] = {}
    for row in rows:
        if only is None or row["table_id"] in only:
            table = tables(row["table_id"])
            if table is None:
                raise CorruptObject(f"{where}: a delete of a table that the Catalog has never named")
            one = PendingDelete(row["order"], _decoded(row["delete"], table, where), frozenset(row["files"]))
            found.setdefault((row["table_id"], row["partition"]), []).append(one)
    return {key: tuple(pending) for key, pending in found.items()}


def _decoded(data: bytes, table: Table, where: str) -> RangeDelete:
    """A Checkpoint does not say which version of its table a delete was written for (L30): its tags tell."""
    if any(tag.column_id not in table.by_id for tag in decode_delete(data, None, where).tags):
        raise CatalogBehind(f"{where}: a delete by a tag that table {table.name!r} does not have here yet")
    return decode_delete(data, table, where)
