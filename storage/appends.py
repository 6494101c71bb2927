"""The shard part of a write: as rows, and encoded once by a gateway (LOG L4, L7, L8, L30, FORMAT F8).

Pure. A gateway calls `encode_append` and sends what it returns; the owner puts those bytes into its Log as they are
and keeps the rows that `decode_append` reads from them. Whatever replay could not read is refused before it is sent.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from storage.deletes import from_record
from storage.entries import decode_record, decode_rows, delete_entry, rows_entry
from storage.errors import CorruptObject
from storage.frames import NO_WRITE_ID, Entry, EntryKind, Frame, FrameType
from storage.schema import NO_ROWS, OP_CODES, OP_COLUMN, TIME_COLUMN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.deletes import RangeDelete
    from storage.frames import WriteId
    from storage.schema import Table

ROW_FRAMES: Final[Mapping[int, FrameType]] = {int(t): t for t in (FrameType.ROWS, FrameType.IPC)}
"""Types of frames that hold rows."""
_ID_BOUNDS: Final = (2**8, 2**32, 2**64, 2**32)
"""What the directory has room for: kind, epoch, sequence, span."""
_OPS: Final = np.array(list(OP_CODES.values()), np.int8)


@dataclass(frozen=True, slots=True)
class Append:
    """One shard part of a write (LOG L7, L8): everything about it is fixed before the first try."""

    table: Table
    partition: int
    rows: pa.RecordBatch
    write_id: WriteId = NO_WRITE_ID
    born: int = 0
    unchanged_since: int | None = None
    """Take it only if none of its keys was written by an object above this one (LOG L26)."""
    delete: RangeDelete | None = None
    """A range delete in place of rows."""

    @property
    def table_id(self) -> int:
        return self.table.id

    @property
    def schema_version(self) -> int:
        return self.table.version

    @property
    def is_delete(self) -> bool:
        return self.delete is not None

    @property
    def size_bytes(self) -> int:
        """Of the rows or the delete, as they are held here."""
        return self.rows.nbytes if self.delete is None else self.delete.bytes


@dataclass(frozen=True, slots=True)
class EncodedAppend:
    """The same, with its rows or its delete as the payload of one frame of type ``frame_type``.

    Times are event times in ns.
    """

    table_id: int
    partition: int
    schema_version: int
    write_id: WriteId
    born: int
    frame_type: int
    frame: bytes
    row_count: int
    time_low: int
    time_high: int
    unchanged_since: int | None = None

    @property
    def is_delete(self) -> bool:
        return self.frame_type == FrameType.RECORD

    @property
    def size_bytes(self) -> int:
        """Of the rows or the delete, as they were sent."""
        return len(self.frame)


def append_entry(append: Append) -> Entry:
    """The entry to be logged; its base offset is given when it is sent. Raises SchemaConflict."""
    if append.delete is not None:
        return delete_entry(append.table, append.partition, append.delete, append.write_id)
    return rows_entry(append.table, append.partition, append.rows, append.write_id)


def encode_append(append: Append) -> EncodedAppend:
    """Encode the rows, which must not be none, or the delete. Raises SchemaConflict for what is not of the table."""
    entry = append_entry(append)
    (frame,) = entry.frames
    return EncodedAppend(
        entry.table_id, entry.partition, entry.schema_version, append.write_id, append.born, int(frame.type),
        b"".join(frame.parts()), entry.row_count, entry.time_low, entry.time_high, append.unchanged_since,
    )  # fmt: skip


def decode_append(part: EncodedAppend, table: Table, log_id: int) -> tuple[Entry, pa.RecordBatch]:
    """The entry to be logged and its rows, which are views of the frame as far as Arrow allows.

    ``table`` is the owner's, at ``part.schema_version`` or newer. Raises CorruptObject: nothing that replay would
    stumble over, or that says other things than its rows do, reaches the Log (L4).
    """
    where = f"a write to table {table.name!r} (id {table.id}), partition {part.partition}"
    frame_type = ROW_FRAMES.get(part.frame_type)
    is_delete = part.frame_type == FrameType.RECORD
    _refuse(frame_type is None and not is_delete, where, f"a frame of type {part.frame_type} does not hold rows")
    _refuse(not _is_write_id(part.write_id), where, f"no write id: {part.write_id}")
    here = any(p.id == part.partition and p.log_id == log_id for p in table.partitions)
    _refuse(not here, where, f"log {log_id} does not hold that partition")
    if is_delete:
        return _decode_delete(part, table, where)
    assert frame_type is not None
    entry = Entry(
        EntryKind.ROWS, (Frame(frame_type, memoryview(part.frame)),), table_id=part.table_id,
        partition=part.partition, schema_version=part.schema_version, offset_count=part.row_count,
        row_count=part.row_count, time_low=part.time_low, time_high=part.time_high, write_id=part.write_id,
    )  # fmt: skip
    rows = decode_rows(table, entry, where, full=True)
    _check_rows(part, rows, where)
    return entry, rows


def _decode_delete(part: EncodedAppend, table: Table, where: str) -> tuple[Entry, pa.RecordBatch]:
    """The entry of a range delete, made anew: so it says nothing that it should not."""
    sent = Entry(EntryKind.DELETE, (Frame(FrameType.RECORD, part.frame),))
    delete = from_record(decode_record(sent, where), table, where)
    entry = delete_entry(table, part.partition, delete, part.write_id)
    _refuse((part.time_low, part.time_high, part.row_count) != (delete.time_low, delete.time_high, 0), where,
            "a delete that says other times than its entry")  # fmt: skip
    return dataclasses.replace(entry, schema_version=part.schema_version), NO_ROWS


def _check_rows(part: EncodedAppend, rows: pa.RecordBatch, where: str) -> None:
    """What decoding by itself does not see, so that later it can be trusted."""
    names = rows.schema.names
    _refuse(rows.num_rows == 0, where, "no rows")
    _refuse(len(set(names)) < len(names), where, "a column is there twice")
    _refuse(TIME_COLUMN not in names, where, "the rows have no time")
    time = rows.column(TIME_COLUMN)
    _refuse(time.null_count > 0, where, "a row has no time")
    times = time.view(pa.int64()).to_numpy()
    found = (int(times.min()), int(times.max()))
    said = (part.time_low, part.time_high)
    _refuse(found != said, where, f"times from {found[0]} to {found[1]} where {said[0]} to {said[1]} are said")
    if OP_COLUMN in names:
        ops = rows.column(OP_COLUMN)
        known = ops.null_count == 0 and bool(np.isin(ops.to_numpy(), _OPS).all())
        _refuse(not known, where, "a row has an op that is not known")


def _is_write_id(write_id: WriteId) -> bool:
    if write_id.kind == 0 or len(write_id.writer) != 16:
        return write_id == NO_WRITE_ID
    numbers = (write_id.kind, write_id.epoch, write_id.sequence, write_id.span)
    return all(0 <= number < bound for number, bound in zip(numbers, _ID_BOUNDS, strict=True))


def _refuse(condition: bool, where: str, what: str) -> None:
    if condition:
        raise CorruptObject(f"{where}: {what}")
