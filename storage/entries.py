"""What entries carry: rows as frames, and records that are not rows (FORMAT F8, F10).

Pure. A `rows` frame is column ids and one Arrow record-batch message without its schema: types come from the
Catalog at the entry's schema version. An `ipc` frame is a whole Arrow stream with dictionaries, for batches
in which those pay. A record is a MessagePack map; its first key says its version.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from storage import deletes
from storage.errors import CorruptObject, SchemaConflict, UnsupportedFormat
from storage.frames import NO_WRITE_ID, Entry, EntryKind, Frame, FrameType, WriteId
from storage.schema import OP_COLUMN, OP_COLUMN_ID, OP_TYPE, TIME_COLUMN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from storage.deletes import RangeDelete
    from storage.schema import Table

IPC_FROM_ROWS: Final = 8
"""Batches with at least so many rows are written as `ipc` with dictionaries, smaller ones as `rows` (F8)."""
RECORD_VERSION: Final = 1
RECORD_KEYS: Final[Mapping[EntryKind, frozenset[str]]] = {
    EntryKind.RETENTION: frozenset({"v", "database", "cutoff", "recorded_ms"}),
    EntryKind.DROP: frozenset({"v", "revision"}),
    EntryKind.SKIP: frozenset({"v", "sequence", "skipped_at_ms"}),
    EntryKind.RECORD: frozenset({"v", "revision", "effects"}),
    EntryKind.DELETE: deletes.RECORD_KEYS,
}
"""The keys of each record, all of them and no others (docs/format.md)."""
TABLE_RETENTION_KEYS: Final = RECORD_KEYS[EntryKind.RETENTION] | {"limit"}
"""Those of a retention record whose directory names a table: who does not know these must not take it for another's."""
_COUNT: Final = struct.Struct("<II")


def _plain(array: pa.Array) -> pa.Array:
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _has(table: Table, field: pa.Field) -> bool:
    """Whether ``field`` is a column of the table under one of the two types that replay can read back, or the ops."""
    if field.name == OP_COLUMN:
        return bool(field.type == OP_TYPE)
    column = table.by_storage_name.get(field.name)
    return column is not None and field.type in (column.arrow_type, column.plain_type)


def encode_rows(table: Table, rows: pa.RecordBatch) -> Frame:
    """The frame for ``rows`` (fields named by storage names). Raises SchemaConflict for what is not of ``table``."""
    for field in rows.schema:
        if not _has(table, field):  # L4: what replay could not read is refused before it is sent
            raise SchemaConflict(f"table {table.name!r} has no column {field.name!r} of type {field.type}")
    if rows.num_rows >= IPC_FROM_ROWS:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, rows.schema) as writer:
            writer.write_batch(rows)
        return Frame(FrameType.IPC, memoryview(sink.getvalue()))
    ids = [OP_COLUMN_ID if name == OP_COLUMN else table.by_storage_name[name].id for name in rows.schema.names]
    head = _COUNT.pack(1, len(ids)) + np.asarray(ids, dtype="<u4").tobytes()
    head += bytes(-len(head) % 16)
    plain = pa.RecordBatch.from_arrays([_plain(c) for c in rows.columns], names=rows.schema.names)
    return Frame(FrameType.ROWS, (head, memoryview(plain.serialize())))


def _decode_plain(table: Table, payload: memoryview, full: bool, where: str) -> pa.RecordBatch:
    version, count = _COUNT.unpack_from(payload)
    if version != 1:
        raise UnsupportedFormat(f"{where}: rows frame version {version}")
    ids = np.frombuffer(payload, dtype="<u4", count=count, offset=_COUNT.size)
    start = _COUNT.size + 4 * count
    start += -start % 16
    try:
        schema = pa.schema([_plain_field(table, i) for i in ids.tolist()])
    except KeyError as error:
        raise CorruptObject(f"{where}: table {table.id} has no column {error}") from None
    batch = pa.ipc.read_record_batch(pa.py_buffer(payload[start:]), schema)
    batch.validate(full=full)
    tags = {tag.storage_name for tag in table.tags}
    arrays = [
        array.dictionary_encode() if name in tags else array
        for name, array in zip(schema.names, batch.columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, names=schema.names)


def _plain_field(table: Table, column_id: int) -> tuple[str, pa.DataType]:
    if column_id == OP_COLUMN_ID:
        return OP_COLUMN, OP_TYPE
    column = table.by_id[column_id]
    return column.storage_name, column.plain_type


def _decode_stream(table: Table, payload: memoryview, full: bool, where: str) -> pa.RecordBatch:
    reader = pa.ipc.open_stream(pa.py_buffer(payload))
    for field in reader.schema:
        if not _has(table, field):
            raise CorruptObject(f"{where}: table {table.id} has no column {field.name!r} of type {field.type}")
    batch = reader.read_next_batch()
    batch.validate(full=full)
    return batch


def decode_rows(table: Table, entry: Entry, where: str, *, full: bool = False) -> pa.RecordBatch:
    """The rows of an entry, with tags as dictionaries. Raises CorruptObject when they are not rows of ``table``.

    ``full`` looks at every value: for frames that no checksum of ours has covered yet.
    """
    for frame in entry.frames:
        payload = memoryview(frame.parts()[0])
        try:
            if frame.type is FrameType.ROWS:
                batch = _decode_plain(table, payload, full, where)
            elif frame.type is FrameType.IPC:
                batch = _decode_stream(table, payload, full, where)
            else:
                continue
        except (pa.ArrowException, OSError, EOFError, struct.error, StopIteration, ValueError) as error:
            raise CorruptObject(f"{where}: rows cannot be decoded: {error}") from error
        if batch.num_rows != entry.row_count:
            raise CorruptObject(f"{where}: {batch.num_rows} rows where the directory says {entry.row_count}")
        return batch
    raise CorruptObject(f"{where}: an entry of rows has no frame of rows")


def rows_entry(table: Table, partition: int, rows: pa.RecordBatch, write_id: WriteId = NO_WRITE_ID) -> Entry:
    """The entry of one Append; its base offset is given when it is sent (LOG L24)."""
    times = rows.column(rows.schema.get_field_index(TIME_COLUMN)).view(pa.int64()).to_numpy()
    return Entry(
        EntryKind.ROWS,
        (encode_rows(table, rows),),
        table_id=table.id,
        partition=partition,
        schema_version=table.version,
        offset_count=rows.num_rows,
        row_count=rows.num_rows,
        time_low=int(times.min()),
        time_high=int(times.max()),
        write_id=write_id,
    )


def delete_entry(table: Table, partition: int, delete: RangeDelete, write_id: WriteId = NO_WRITE_ID) -> Entry:
    """The entry of a range delete: it takes an offset in its partition (F12)."""
    return record_entry(
        EntryKind.DELETE,
        deletes.to_record(delete),
        table_id=table.id,
        partition=partition,
        schema_version=table.version,
        offset_count=1,
        time_low=delete.time_low,
        time_high=delete.time_high,
        write_id=write_id,
    )


def record_entry(kind: EntryKind, record: Mapping[str, Any], **directory: Any) -> Entry:
    """An entry for an effect that is not rows (F10)."""
    payload = msgspec.msgpack.encode({"v": RECORD_VERSION, **record})
    return Entry(kind, (Frame(FrameType.RECORD, payload),), **directory)


def decode_record(entry: Entry, where: str) -> dict[str, Any]:
    """The map of a record entry: exactly the keys of its kind (`RECORD_KEYS`)."""
    if not entry.frames or entry.frames[0].type is not FrameType.RECORD:
        raise CorruptObject(f"{where}: a record entry has no record frame")
    try:
        record = msgspec.msgpack.decode(entry.frames[0].parts()[0])
    except msgspec.DecodeError as error:
        raise CorruptObject(f"{where}: {error}") from error
    if not isinstance(record, dict) or record.get("v") != RECORD_VERSION:
        raise UnsupportedFormat(f"{where}: a record of a version that this reader does not know")
    is_of_table = entry.kind == EntryKind.RETENTION and entry.table_id
    if record.keys() != (TABLE_RETENTION_KEYS if is_of_table else RECORD_KEYS[EntryKind(entry.kind)]):
        raise UnsupportedFormat(f"{where}: a record with the keys {', '.join(map(str, record))}")
    return record
