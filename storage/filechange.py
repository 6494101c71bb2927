"""What a compaction does to a shard's list of files: "remove these, add those" (LOG L18, L21). Pure.

`storage.shard` commits changes as a Checkpoint at the k in force: the sections of the one that stands, with another
list of files. `storage.compaction` says what to merge, `storage.merge` makes the files that are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from storage.checkpoint import Part, Section, decode_tables, section_entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pyarrow as pa

    from storage.deletes import PendingDelete
    from storage.frames import Entry, LogObject
    from storage.schema import DataFile
    from storage.shardstate import PartitionState

AS_THEY_STAND: Final = frozenset({Section.WRITE_IDS, Section.DROPS, Section.CUTOFFS, Section.TABLE_CUTOFFS})
"""Sections that are true at k, and so the same in every Checkpoint at that k: what came since is above it (L18)."""


Key = tuple[int, int]
"""(table id, partition id)."""


@dataclass(frozen=True, slots=True)
class FileChange:
    """The files of one partition that go, and those that take their place: all of it, or, void, nothing (L21)."""

    removed: tuple[DataFile, ...]
    added: tuple[DataFile, ...]
    changes_from: int = 0
    """Rows that delete others, below this offset, go with it: who follows changes must begin here, or above (L25)."""
    deletes: frozenset[int] = frozenset()
    """The range deletes, by their offsets, that are carried out in ``added``."""

    @property
    def partition(self) -> Key:
        """Whose files they are."""
        return self.removed[0].table_id, self.removed[0].partition


@dataclass(frozen=True, slots=True)
class FileLists:
    """How a list of files is laid out in a Checkpoint: those that it names itself, and its parts (L23)."""

    loose: tuple[DataFile, ...]
    parts: tuple[Part, ...]


def standing(
    changes: Sequence[FileChange], files: Iterable[DataFile], pending: Mapping[Key, Sequence[PendingDelete]]
) -> list[bool]:
    """Which changes fit the list of ``files`` (L21).

    One is void if a file that it removes is gone, or if a delete that names one was applied since, so that what it
    adds still has its rows.
    """
    there = {file.identity for file in files}
    stands = []
    for change in changes:
        removed = {file.identity for file in change.removed}
        paths = {file.path for file in change.removed}
        missed = [
            one for one in pending.get(change.partition, ())
            if one.order not in change.deletes and not paths.isdisjoint(one.files)
        ]  # fmt: skip
        stands.append(removed <= there and not (missed and change.added))
        if stands[-1]:
            there -= removed
    return stands


def changed_lists(lists: FileLists, changes: Sequence[FileChange]) -> FileLists:
    """The lists after ``changes``. A part that loses a file is given up: what is left of it is loose."""
    removed = {file.identity for change in changes for file in change.removed}
    kept = tuple(part for part in lists.parts if not any(file.identity in removed for file in part.files))
    named = {part.path for part in kept}
    given_up = [part for part in lists.parts if part.path not in named]
    loose = [file for part in given_up for file in part.files if file.identity not in removed]
    loose += [file for file in lists.loose if file.identity not in removed]
    return FileLists((*loose, *(file for change in changes for file in change.added)), kept)


def bytes_after(partitions: Mapping[Key, PartitionState], changes: Sequence[FileChange]) -> dict[Key, int]:
    """The bytes that the partitions of ``changes`` will have."""
    found: dict[Key, int] = {}
    for change in changes:
        key = change.partition
        before = found.get(key, partitions[key].bytes)
        found[key] = before + sum(f.bytes for f in change.added) - sum(f.bytes for f in change.removed)
    return found


def changes_from_after(changes: Sequence[FileChange]) -> dict[Key, int]:
    """From which offset on the changes of partitions can be seen, of those that lose deletes (L25)."""
    found: dict[Key, int] = {}
    for change in changes:
        found[change.partition] = max(change.changes_from, found.get(change.partition, 0))
    return {key: offset for key, offset in found.items() if offset}


def repeated_sections(
    in_force: LogObject, revision: int, bytes_of: Mapping[Key, int], changes_from: Mapping[Key, int], where: str
) -> tuple[Entry, ...]:
    """The sections beside the files of a Checkpoint that repeats the k of ``in_force`` (L18).

    ``bytes_of`` are the bytes of the partitions whose files change, ``changes_from`` from which offset on their changes
    can be seen, ``revision`` the one that the new files rest on (L30). Raises CorruptObject.
    """
    tables = decode_tables(in_force.entries, where)
    (meta,) = tables[Section.META].to_pylist()
    same = tuple(entry for entry in in_force.entries if entry.table_id in AS_THEY_STAND)
    return (
        section_entry(Section.META, [{**meta, "revision": max(meta["revision"], revision)}]),
        section_entry(Section.PARTITIONS, _changed(tables[Section.PARTITIONS], bytes_of, changes_from)),
        *same,
    )


def _changed(
    partitions: pa.Table, bytes_of: Mapping[Key, int], changes_from: Mapping[Key, int]
) -> list[dict[str, int]]:
    rows: list[dict[str, int]] = partitions.to_pylist()
    for row in rows:
        key = (row["table_id"], row["partition"])
        row["bytes"] = bytes_of.get(key, row["bytes"])
        row["changes_from"] = max(row["changes_from"], changes_from.get(key, 0))
    return rows
