"""What the Log of a shard adds up to: files, memtable, offsets, write ids, cut-offs (LOG L7, L14, L18, L24, L36).

Pure and synchronous. `storage.log.LogCore` (an owner) and `storage.logreader.LogReader` (a store read) feed it
the objects of the Log in order; `storage.shard` asks it for snapshots and for the content of Checkpoints.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

from storage.checkpoint import (
    FILES_INLINE_MAX,
    Part,
    Section,
    decode_part,
    decode_tables,
    file_table,
    files_from_table,
    section_entry,
    section_from_table,
)
from storage.cutoffs import Cutoff
from storage.deletes import from_record
from storage.entries import decode_record, decode_rows
from storage.errors import CatalogBehind, CorruptObject, UnsupportedFormat
from storage.frames import NO_WRITE_ID, SKIPPABLE_FROM, Entry, EntryKind
from storage.pendingdeletes import (
    pending_after,
    pending_after_changes,
    pending_sections,
    read_pending,
    seen_from,
)
from storage.schema import NO_ROWS, PartitionSnapshot, TailBatch
from storage.writeids import WRITE_IDS_MAX, Remembered, forget, read_write_ids, write_id_table

__all__ = ["WRITE_IDS_MAX", "Frozen", "Remembered", "ShardState", "encode_frozen", "held_bytes"]

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from storage.deletes import PendingDelete
    from storage.filechange import FileChange, FileLists
    from storage.frames import Header, LogObject, WriteId
    from storage.schema import DataFile, Table

TAKES_OFFSETS: Final = frozenset({EntryKind.ROWS, EntryKind.DELETE})
"""Kinds of entries that change what readers see of a partition (F12)."""
COLUMN_BYTES: Final = 1024
"""What a column of a batch holds beside its values: Arrow's objects and alignment, measured at 0.7 to 1.3 KB."""

LOST_OFFSETS: Final = 2**40
"""More than an object that was given up can have had: its rows may have been answered under their offsets (L24)."""

PartitionKey = tuple[int, int]
"""(table id, partition id)."""


@dataclass(frozen=True, slots=True)
class TailEntry:
    """Rows of one entry above k: ``sequence`` is its object."""

    sequence: int
    batch: TailBatch
    time_low: int
    time_high: int
    bytes: int


@dataclass(slots=True)
class PartitionState:
    """One partition at this position of the Log."""

    start: int = 0
    next_offset: int = 0
    changes_from: int = 0
    bytes: int = 0
    time_high: int = -(2**63)
    changed_at: int = 0
    filed_at: int = 0
    """Rows of objects up to this one may be in files; at what object a file's rows were written nobody knows."""
    files: tuple[DataFile, ...] = ()
    tail: list[TailEntry] = field(default_factory=list)
    pending: tuple[PendingDelete, ...] = ()
    """Range deletes at or below k that are not carried out in all files (L25); those above k stand in the tail."""


@dataclass(frozen=True, slots=True)
class Frozen:
    """The memtable as it was at ``covered``, and everything else a Checkpoint says of that moment (F17)."""

    covered: int
    horizon: int
    revision: int
    tails: dict[PartitionKey, tuple[TailBatch, ...]]
    partitions: list[dict[str, int]]
    write_ids: tuple[list[WriteId], list[Remembered]]
    drops: dict[int, int]
    cutoffs: dict[int, Cutoff]
    table_cutoffs: dict[PartitionKey, Cutoff]
    pending: dict[PartitionKey, tuple[PendingDelete, ...]]


def held_bytes(rows: pa.RecordBatch) -> int:
    """The memory that a batch holds: of a single row, a hundred times its values (L23)."""
    held: int = rows.get_total_buffer_size() + COLUMN_BYTES * (rows.num_columns + 1)
    return held


def encode_frozen(frozen: Frozen, new_files: Sequence[DataFile]) -> tuple[Entry, ...]:
    """The sections that are fixed when the memtable is frozen. Pure, and long for many write ids: off the loop."""
    added: dict[PartitionKey, int] = {}
    for file in new_files:
        key = (file.table_id, file.partition)
        added[key] = added.get(key, 0) + file.bytes
    partitions = [
        {**row, "bytes": row["bytes"] + added.get((row["table_id"], row["partition"]), 0)} for row in frozen.partitions
    ]
    cutoffs = [
        {"database_id": database, "cutoff": c.time_ns, "recorded_ms": c.recorded_ms}
        for database, c in frozen.cutoffs.items()
    ]
    meta = [{"covered": frozen.covered, "horizon": frozen.horizon, "revision": frozen.revision}]
    return (
        section_entry(Section.META, meta),
        section_entry(Section.PARTITIONS, partitions),
        section_from_table(Section.WRITE_IDS, write_id_table(*frozen.write_ids)),  # L7: with the horizon
        section_entry(Section.DROPS, [{"table_id": t, "revision": r} for t, r in frozen.drops.items()]),
        section_entry(Section.CUTOFFS, cutoffs),
        *_table_cutoffs(frozen.table_cutoffs),
    )


def _table_cutoffs(cutoffs: Mapping[PartitionKey, Cutoff]) -> tuple[Entry, ...]:
    """Left out if there are none, so that stores without them stay as they are."""
    rows = [
        {
            "table_id": table, "partition": partition, "cutoff": one.time_ns, "recorded_ms": one.recorded_ms,
            "database_id": one.database_id, "limit": one.limit,
        }
        for (table, partition), one in cutoffs.items()
    ]  # fmt: skip
    return (section_entry(Section.TABLE_CUTOFFS, rows),) if rows else ()


@dataclass(frozen=True, slots=True)
class PreparedCheckpoint:
    """What becomes true when a Checkpoint stands: its new files, how the list is laid out, the paths that go."""

    covered: int
    new_files: tuple[DataFile, ...]
    loose: tuple[DataFile, ...]
    parts: tuple[Part, ...]
    pending: Mapping[PartitionKey, tuple[PendingDelete, ...]]
    removed: tuple[DataFile, ...] = ()
    changes_from: Mapping[PartitionKey, int] = field(default_factory=dict)


class ShardState:
    """The state of one Log of rows. ``tables`` looks a table up by id at the newest Revision known here.

    A reader of the store keeps rows and files of the tables ``only``, and no write ids (L15); None: an owner.
    """

    def __init__(
        self,
        store_id: bytes,
        log_id: int,
        tables: Callable[[int], Table | None],
        full_bytes: int = 0,
        only: frozenset[int] | None = None,
    ) -> None:
        self.store_id = store_id
        self.log_id = log_id
        self.k = 0
        self.position = 0
        self.checkpoint_seq = 0
        self.revision = 0
        self.horizon = 0
        self.epoch = 0
        self.tail_bytes = 0
        self.objects_above_k = 0
        self.log_bytes_above_k = 0
        self.oldest_above_k_ms: int | None = None
        self.partitions: dict[PartitionKey, PartitionState] = {}
        self.write_ids: OrderedDict[WriteId, Remembered] = OrderedDict()
        self.drops: dict[int, int] = {}
        self.cutoffs: dict[int, Cutoff] = {}
        """Of databases."""
        self.table_cutoffs: dict[PartitionKey, Cutoff] = {}
        """Of tables by age, of their partitions by bytes (`storage.cutoffs.Cutoffs`)."""
        self.loose: tuple[DataFile, ...] = ()
        self.parts: tuple[Part, ...] = ()
        self.prepared: PreparedCheckpoint | None = None
        self._gap_at = 0
        """The object after the last that was not applied: what a partition had there is not known."""
        self._jumped: dict[PartitionKey, int] = {}
        """Where partitions ended before an object was given up, until rows follow: older versions went on there."""
        self._tables = tables
        self._full_bytes = full_bytes
        self._only = only
        self._sizes: OrderedDict[int, tuple[int, int]] = OrderedDict()  # sequence -> (bytes, written at ms)
        self._part_rows: dict[str, int] = {}

    # -- LogState: fed by the Log ------------------------------------------------------------------------

    def load(self, checkpoint: LogObject | None) -> Sequence[str]:
        """Start from a Checkpoint; its parts are read next (LOG L10, F17)."""
        if checkpoint is None:
            return ()
        where = f"log {self.log_id} checkpoint {checkpoint.header.sequence}"
        tables = decode_tables(checkpoint.entries, where)
        remembered = tables.pop(Section.WRITE_IDS)
        if self._only is None:
            self.write_ids = read_write_ids(remembered)
        files = files_from_table(tables.pop(Section.FILES), where)
        sections = {section: table.to_pylist() for section, table in tables.items()}
        (meta,) = sections[Section.META]
        self.k = self.position = meta["covered"]
        self.horizon, self.revision = meta["horizon"], meta["revision"]
        self.checkpoint_seq = checkpoint.header.sequence
        for row in sections[Section.PARTITIONS]:
            self.partitions[row["table_id"], row["partition"]] = PartitionState(
                row["start"],
                row["next"],
                row["changes_from"],
                row["bytes"],
                row["time_high"],
                self.checkpoint_seq,
                filed_at=self.k,
            )
        self.drops = {row["table_id"]: row["revision"] for row in sections[Section.DROPS]}
        self.cutoffs = {r["database_id"]: Cutoff(r["cutoff"], r["recorded_ms"]) for r in sections[Section.CUTOFFS]}
        self.table_cutoffs = {
            (r["table_id"], r["partition"]): Cutoff(r["cutoff"], r["recorded_ms"], r["limit"], r["database_id"])
            for r in sections[Section.TABLE_CUTOFFS]
        }
        for key, pending in read_pending(sections[Section.DELETES], self._tables, self._only, where).items():
            if key not in self.partitions:
                raise CorruptObject(f"{where}: a delete in partition {key}, which it does not list")
            self.partitions[key].pending = pending
        self.loose = self._wanted_files(files)
        self._add_files(self.loose)
        if any(row["section"] != Section.FILES or row["owner_id"] for row in sections[Section.PARTS]):
            raise UnsupportedFormat(f"{where}: a part of something else than the file list")
        self._part_rows = {row["path"]: row["rows"] for row in sections[Section.PARTS]}
        return list(self._part_rows)

    def load_part(self, path: str, data: bytes) -> None:
        """Take one part of the file list."""
        files = decode_part(self.store_id, self.log_id, data, path)
        if len(files) != self._part_rows[path]:
            raise CorruptObject(f"{path}: {len(files)} files where the Checkpoint says {self._part_rows[path]}")
        files = self._wanted_files(files)
        order = list(self._part_rows)
        self.parts = tuple(sorted((*self.parts, Part(path, files)), key=lambda part: order.index(part.path)))
        self._add_files(files)

    def _wanted_files(self, files: Iterable[DataFile]) -> tuple[DataFile, ...]:
        return tuple(file for file in files if self._only is None or file.table_id in self._only)

    def covered(self) -> int:
        return self.k

    def place(self, entries: Sequence[Entry]) -> tuple[Entry, ...]:
        """Offsets for the next group: they go on where the partition ends, without a gap (LOG L24)."""
        following: dict[PartitionKey, int] = {}
        placed = []
        for entry in entries:
            if entry.kind not in TAKES_OFFSETS:
                placed.append(entry)
                continue
            key = (entry.table_id, entry.partition)
            base = following[key] if key in following else self._next_offset(key)
            placed.append(dataclasses.replace(entry, base_offset=base))
            following[key] = base + entry.offset_count
        return tuple(placed)

    def apply(self, obj: LogObject, payloads: Sequence[object] = ()) -> None:
        """Apply a data object. ``payloads`` are the batches of our own entries, so that they need no decoding.

        Raises CorruptObject or UnsupportedFormat before anything has changed (L3: never half-applied).
        """
        where = f"log {self.log_id} object {obj.header.sequence}"
        given = payloads or (None,) * len(obj.entries)
        content = [self._read(entry, payload, where) for entry, payload in zip(obj.entries, given, strict=True)]
        self._check_offsets(obj, where)
        for entry, value in zip(obj.entries, content, strict=True):
            if isinstance(value, pa.RecordBatch):
                self._apply_batch(obj.header, entry, TailBatch(entry.base_offset, value))
            elif entry.kind == EntryKind.DELETE and value is not None:
                self._apply_batch(obj.header, entry, TailBatch(entry.base_offset, NO_ROWS, value))
            elif entry.kind == EntryKind.RETENTION:
                self._apply_cutoff(entry, value)
            elif entry.kind == EntryKind.DROP:
                self._apply_drop(entry.table_id, value)
            elif entry.kind == EntryKind.SKIP:
                self._apply_skip()
        self.position = obj.header.sequence
        self.objects_above_k += 1
        self.log_bytes_above_k += obj.size
        self._sizes[self.position] = (obj.size, obj.header.written_at_ms)
        if self.oldest_above_k_ms is None:
            self.oldest_above_k_ms = obj.header.written_at_ms

    def _read(self, entry: Entry, payload: object, where: str) -> Any:
        """What an entry says: rows, a delete or a record; None for what may be skipped (F6)."""
        if entry.kind in TAKES_OFFSETS:
            if self._only is not None and entry.table_id not in self._only:
                return None
            table = self._tables(entry.table_id)
            if table is None:
                raise CorruptObject(f"{where}: rows of table {entry.table_id}, which the Catalog has never named")
            if table.version < entry.schema_version:  # L30
                raise CatalogBehind(
                    f"{where}: rows of table {table.name!r} at version {entry.schema_version}, here it has "
                    f"{table.version}"
                )
            if entry.kind == EntryKind.DELETE:
                return from_record(decode_record(entry, where), table, where)
            return payload if isinstance(payload, pa.RecordBatch) else decode_rows(table, entry, where)
        if entry.kind in (EntryKind.RETENTION, EntryKind.DROP, EntryKind.SKIP):
            return decode_record(entry, where)
        if entry.kind < SKIPPABLE_FROM:
            raise UnsupportedFormat(f"{where}: an entry of kind {entry.kind} does not belong into a shard's Log")
        return None

    def _check_offsets(self, obj: LogObject, where: str) -> None:
        """L24: without a gap, save where an object between was given up (`runnel store skip`, L3)."""
        following: dict[PartitionKey, int] = {}
        if obj.header.sequence != self.position + 1:
            self._gap_at = obj.header.sequence
        for entry in obj.entries:
            if entry.kind not in TAKES_OFFSETS or (self._only is not None and entry.table_id not in self._only):
                continue
            key = (entry.table_id, entry.partition)
            known = key in following
            expected = following[key] if known else self._next_offset(key)
            seen = known or (key in self.partitions and self.partitions[key].changed_at >= self._gap_at)
            least = expected if known else self._jumped.get(key, expected)
            if entry.base_offset < least or (entry.base_offset > expected and seen):
                raise CorruptObject(f"{where}: offset {entry.base_offset} where {expected} must follow")
            following[key] = entry.base_offset + entry.offset_count

    def _next_offset(self, key: PartitionKey) -> int:
        return self.partitions[key].next_offset if key in self.partitions else 0

    def _apply_batch(self, header: Header, entry: Entry, batch: TailBatch) -> None:
        if entry.write_id != NO_WRITE_ID and self._only is None:  # L7: replay only adds
            self.write_ids[entry.write_id] = Remembered(header.sequence, entry.base_offset, header.written_at_ms)
        key = (entry.table_id, entry.partition)
        state = self.partitions.setdefault(key, PartitionState())
        if self._jumped.pop(key, entry.base_offset) <= entry.base_offset < state.next_offset:
            state.changes_from = entry.base_offset  # written by a version that did not jump
        state.next_offset = entry.base_offset + entry.offset_count
        if batch.delete is None:
            state.time_high = max(state.time_high, entry.time_high)
        state.changed_at = max(state.changed_at, header.sequence)  # a Checkpoint's own may be above what it left
        size = held_bytes(batch.rows) + (0 if batch.delete is None else batch.delete.bytes)
        state.tail.append(TailEntry(header.sequence, batch, entry.time_low, entry.time_high, size))
        self.tail_bytes += size

    def _apply_cutoff(self, entry: Entry, record: dict[str, Any]) -> None:
        """Of the directory's table and partition, or of a whole database."""
        if entry.table_id:
            key = (entry.table_id, entry.partition)
            cutoff = Cutoff(record["cutoff"], record["recorded_ms"], record["limit"], record["database"])
            if cutoff.replaces(self.table_cutoffs.get(key)):
                self.table_cutoffs[key] = cutoff
            return
        cutoff = Cutoff(record["cutoff"], record["recorded_ms"])
        if cutoff.replaces(self.cutoffs.get(record["database"])):
            self.cutoffs[record["database"]] = cutoff

    def _apply_drop(self, table_id: int, record: dict[str, Any]) -> None:
        self.drops[table_id] = max(self.drops.get(table_id, 0), record["revision"])  # L31: idempotent by table id
        self.revision = max(self.revision, record["revision"])
        self.table_cutoffs = {key: one for key, one in self.table_cutoffs.items() if key[0] != table_id}

    def _apply_skip(self) -> None:
        """An object was given up (L3). What it had cannot be seen any more (L25); its offsets are not given again."""
        for key, state in self.partitions.items():
            self._jumped.setdefault(key, state.next_offset)
            state.next_offset = state.changes_from = state.next_offset + LOST_OFFSETS

    def checkpointed(self, sequence: int, covered: int, sections: Sequence[Entry]) -> None:
        """Our own Checkpoint stands: rows up to ``covered`` leave the memtable as their files appear (L22)."""
        prepared = self.prepared
        assert prepared is not None
        assert prepared.covered == covered
        self.prepared = None
        self.k = covered
        self.checkpoint_seq = sequence  # not `position`: in a paused replay objects below it are still to come
        self.loose, self.parts = prepared.loose, prepared.parts
        for key, state in self.partitions.items():
            if state.tail and state.tail[0].sequence <= covered:
                state.changed_at = sequence
                state.filed_at = covered
                state.tail = [e for e in state.tail if e.sequence > covered]
            state.pending = prepared.pending.get(key, ())
        self._remove_files(prepared.removed, sequence)
        for key, offset in prepared.changes_from.items():
            self.partitions[key].changes_from = max(self.partitions[key].changes_from, offset)
        self._add_files(prepared.new_files)
        self._forget_covered()

    def _forget_covered(self) -> None:
        while self._sizes and next(iter(self._sizes)) <= self.k:
            self._sizes.popitem(last=False)
        self.objects_above_k = len(self._sizes)
        self.log_bytes_above_k = sum(size for size, _ in self._sizes.values())
        self.oldest_above_k_ms = next(iter(self._sizes.values()))[1] if self._sizes else None
        self.tail_bytes = sum(e.bytes for s in self.partitions.values() for e in s.tail)

    def replay_is_full(self) -> bool:
        return 0 < self._full_bytes <= self.tail_bytes

    # -- Checkpoints -------------------------------------------------------------------------------------

    def freeze(self) -> Frozen:
        """Everything a Checkpoint says, at this moment; the memtable goes on growing above it (L18)."""
        tails = {key: tuple(e.batch for e in s.tail) for key, s in self.partitions.items() if s.tail}
        pending = {key: found for key, s in self.partitions.items() if (found := pending_after(s))}
        partitions = [
            {
                "table_id": table, "partition": number, "start": s.start, "next": s.next_offset,
                "stable": s.next_offset, "changes_from": seen_from(s), "bytes": s.bytes, "time_high": s.time_high,
            }
            for (table, number), s in self.partitions.items()
        ]  # fmt: skip
        return Frozen(
            self.position, self.horizon, self.revision, tails, partitions,
            (list(self.write_ids), list(self.write_ids.values())), dict(self.drops), dict(self.cutoffs),
            dict(self.table_cutoffs), pending,
        )  # fmt: skip

    def prepare(self, frozen: Frozen, new_files: Sequence[DataFile], new_part: Part | None) -> tuple[Entry, ...]:
        """The file sections of the Checkpoint whose files are ``new_files``; ``new_part`` takes all loose ones."""
        loose = () if new_part is not None else (*self.loose, *new_files)
        parts = self.parts if new_part is None else (*self.parts, new_part)
        pending = {key: found for key, found in frozen.pending.items() if key[0] not in self.drops}
        seen = {(row["table_id"], row["partition"]): row["changes_from"] for row in frozen.partitions}
        self.prepared = PreparedCheckpoint(
            frozen.covered,
            tuple(new_files),
            loose,
            parts,
            pending,
            changes_from={k: at for k, at in seen.items() if at},
        )
        return (*_file_sections(loose, parts), *pending_sections(pending))

    def prepare_change(self, changes: Sequence[FileChange], lists: FileLists) -> tuple[Entry, ...]:
        """The file sections of a Checkpoint at the k in force: the current files with ``changes`` (L21)."""
        added = tuple(file for change in changes for file in change.added)
        removed = tuple(file for change in changes for file in change.removed)
        pending, done = pending_after_changes(self.pending(), changes)
        self.prepared = PreparedCheckpoint(self.k, added, lists.loose, lists.parts, pending, removed, done)
        return (*_file_sections(lists.loose, lists.parts), *pending_sections(pending))

    def pending(self) -> dict[PartitionKey, tuple[PendingDelete, ...]]:
        """The range deletes at or below k that are not carried out in all files, of the partitions that have some."""
        return {key: state.pending for key, state in self.partitions.items() if state.pending}

    def part_is_due(self, new_files: int) -> bool:
        """Whether the next Checkpoint should move its loose files into a part (L23)."""
        return len(self.loose) + new_files > FILES_INLINE_MAX

    def _add_files(self, files: Sequence[DataFile]) -> None:
        """Layers in ascending order (L25), whatever the order in which parts were read."""
        added: dict[PartitionKey, list[DataFile]] = {}
        for file in files:
            added.setdefault((file.table_id, file.partition), []).append(file)
        for key, new in added.items():
            state = self.partitions.setdefault(key, PartitionState())
            state.files = tuple(sorted((*state.files, *new), key=lambda f: (f.order_low, f.order_high, f.path)))
            state.bytes = sum(f.bytes for f in state.files)

    def _remove_files(self, files: Sequence[DataFile], sequence: int) -> None:
        """Their partitions have changed: what was answered of them before is not what is there now (L14)."""
        removed: dict[PartitionKey, set[str]] = {}
        for file in files:  # by partition: other slices of a bundle stay
            removed.setdefault((file.table_id, file.partition), set()).add(file.path)
        for key, paths in removed.items():
            state = self.partitions[key]
            state.changed_at = sequence
            state.files = tuple(file for file in state.files if file.path not in paths)
            state.bytes = sum(file.bytes for file in state.files)

    # -- write ids (L7) ----------------------------------------------------------------------------------

    def advance_horizon(self, forget_before_ms: int) -> None:
        """Forget ids of objects written before ``forget_before_ms``, and the oldest of a full table."""
        self.horizon = forget(self.write_ids, self.horizon, forget_before_ms, WRITE_IDS_MAX)

    # -- snapshots (L14) ---------------------------------------------------------------------------------

    def snapshot(self, table: Table) -> Iterator[PartitionSnapshot]:
        """The partitions of ``table`` in this Log, at this position: files and tail, both never, neither never."""
        if table.id in self.drops:
            return
        for number in (partition.id for partition in table.partitions):  # never all tables: there may be very many
            state = self.partitions.get((table.id, number))
            if state is not None:
                position = (self.log_id, self.epoch, state.changed_at)
                tail = tuple(entry.batch for entry in state.tail)
                yield PartitionSnapshot(number, position, state.files, tail, state.pending, state.changes_from)

    def hides_a_row(self, table_ids: frozenset[int], cutoff_ns: int, hidden_below_ns: int | None = None) -> bool:
        """Whether a cut-off at ``cutoff_ns`` may hide a row of these tables that an earlier one does not (L36).

        Files are judged by their range of time: one that reaches over ``hidden_below_ns`` may have such a row.
        """
        low = -(2**63) if hidden_below_ns is None else hidden_below_ns
        for (table_id, _), state in self.partitions.items():
            if table_id in table_ids and (
                any(f.time_low < cutoff_ns and f.time_high >= low for f in state.files)
                or any(e.time_low < cutoff_ns and e.time_high >= low and e.batch.delete is None for e in state.tail)
            ):
                return True
        return False

    def all_files(self) -> Iterator[DataFile]:
        """Every file that the newest Checkpoint names."""
        for part in self.parts:
            yield from part.files
        yield from self.loose


def _file_sections(loose: Sequence[DataFile], parts: Sequence[Part]) -> tuple[Entry, ...]:
    return (
        section_from_table(Section.FILES, file_table(loose)),
        section_entry(Section.PARTS, [_part_row(part) for part in parts]),
    )


def _part_row(part: Part) -> dict[str, Any]:
    return {"section": int(Section.FILES), "owner_id": 0, "path": part.path, "rows": len(part.files)}
