"""Rows that a client sends as an Arrow IPC stream: read, checked, and turned into Batches of a table.

Pure, and blocking: `nodes.gateway.arrowwrite` runs it off the event loop. Nothing in the bytes is trusted: buffers
are not compressed, types are few, every value is checked, and what a dictionary would expand to is counted first.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from nodes.backend import Batch, ColumnSpec
from nodes.gateway.batches import StaleTable
from nodes.gateway.faults import BadRequest
from storage.schema import TIME_COLUMN, Role, TypeKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.schema import Table

BATCHES_MAX: Final = 1024
COLUMNS_MAX: Final = 10_000
EXPANSION_MAX: Final = 8
"""Text that dictionaries stand for may be so many times as large as the bytes that were sent, and a MiB more."""
TIME_TYPE: Final = pa.timestamp("ns")
TAG_TYPE: Final = pa.dictionary(pa.int32(), pa.string())
_RECORD_BATCH: Final = 3
_DICTIONARY_BATCH: Final = 2


@dataclass(frozen=True, slots=True)
class ArrowRows:
    """What was sent: ``columns`` beside time, and ``batches`` with `TIME_COLUMN` first, under users' names."""

    columns: tuple[ColumnSpec, ...]
    batches: tuple[pa.RecordBatch, ...]

    @property
    def rows(self) -> int:
        return sum(batch.num_rows for batch in self.batches)


def read_rows(data: bytes, tags: Sequence[str] = ()) -> ArrowRows:
    """Read an IPC stream. ``tags`` names the columns of strings that are tags, beside those with dictionaries.

    Raises BadRequest that says which column is wrong, and how.
    """
    try:
        _refuse_compression(data)
        with pa.ipc.open_stream(pa.py_buffer(data)) as reader:
            columns = _columns(reader.schema, frozenset(tags))
            found: list[pa.RecordBatch] = []
            for batch in reader:
                if len(found) == BATCHES_MAX:
                    raise BadRequest(f"more than {BATCHES_MAX} record batches in one write; send larger ones")
                batch.validate(full=True)
                found.append(batch)
    except (pa.ArrowException, OSError, EOFError, struct.error, UnicodeDecodeError) as error:
        raise BadRequest(f"the rows are no Arrow IPC stream that can be read: {str(error)[:300]}") from error
    _check_expansion(found, len(data))
    return ArrowRows(columns, tuple(_plain(batch, columns) for batch in found if batch.num_rows))


def batches_for(table: Table, rows: ArrowRows) -> list[Batch]:
    """The rows under the table's storage names. StaleTable if a column is missing there or of another type."""
    names = [TIME_COLUMN, *(spec.name for spec in rows.columns)]
    fields = []
    for name, spec in zip(names, (None, *rows.columns), strict=True):
        column = table.by_name.get(name)
        if column is None or (spec is not None and (column.role, column.kind) != (spec.role, spec.kind)):
            raise StaleTable(f"column {name!r} of table {table.name!r} is not what it was")
        fields.append(pa.field(column.storage_name, column.arrow_type, nullable=spec is not None))
    schema = pa.schema(fields)
    return [Batch(table, pa.RecordBatch.from_arrays(batch.columns, schema=schema)) for batch in rows.batches]


def _columns(schema: pa.Schema, tags: frozenset[str]) -> tuple[ColumnSpec, ...]:
    names = schema.names
    if len(names) > COLUMNS_MAX:
        raise BadRequest(f"{len(names)} columns; at most {COLUMNS_MAX} can be written at once")
    if len(set(names)) != len(names):
        raise BadRequest("two columns have the same name")
    if TIME_COLUMN not in names:
        raise BadRequest(f"the column {TIME_COLUMN!r} is missing: each row needs a time")
    if not _is_time(schema.field(TIME_COLUMN).type):
        raise BadRequest(f"the column {TIME_COLUMN!r} has type {schema.field(TIME_COLUMN).type}; send a timestamp")
    unknown = sorted(tags - set(names))
    if unknown:
        raise BadRequest(f"no column is called {unknown[0]!r}, which tags name")
    return tuple(_spec(field, field.name in tags) for field in schema if field.name != TIME_COLUMN)


def _spec(field: pa.Field, is_tag: bool) -> ColumnSpec:
    if pa.types.is_dictionary(field.type) and _is_text(field.type.value_type):
        return ColumnSpec(field.name, Role.TAG, TypeKind.STRING)
    kind = _kind(field.type)
    if kind is None or (is_tag and kind is not TypeKind.STRING):
        wanted = "tags are strings" if is_tag else "fields are integers, floats, strings or booleans"
        raise BadRequest(f"the column {field.name!r} has type {str(field.type)[:100]}; {wanted}")
    return ColumnSpec(field.name, Role.TAG if is_tag else Role.FIELD, kind)


def _kind(kind: pa.DataType) -> TypeKind | None:
    types = pa.types
    if types.is_signed_integer(kind):
        return TypeKind.INT64
    if types.is_unsigned_integer(kind):
        return TypeKind.UINT64
    if types.is_floating(kind):
        return TypeKind.FLOAT64
    if types.is_boolean(kind):
        return TypeKind.BOOL
    return TypeKind.STRING if _is_text(kind) else None


def _is_text(kind: pa.DataType) -> bool:
    """Not views: many of them may share one large text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_time(kind: pa.DataType) -> bool:
    return bool(pa.types.is_timestamp(kind) or pa.types.is_int64(kind))


def _plain(batch: pa.RecordBatch, columns: tuple[ColumnSpec, ...]) -> pa.RecordBatch:
    """The batch in the types of Batches, time first."""
    time = batch.column(TIME_COLUMN)
    if time.null_count:
        raise BadRequest(f"the column {TIME_COLUMN!r} has {time.null_count} nulls: each row needs a time")
    arrays = [_cast(TIME_COLUMN, time, TIME_TYPE)]
    for spec in columns:
        array = batch.column(spec.name)
        if spec.role is Role.TAG:
            arrays.append(_tag(spec.name, array))
        else:
            arrays.append(_cast(spec.name, array, _ARROW[spec.kind]))
    return pa.RecordBatch.from_arrays(arrays, names=[TIME_COLUMN, *(spec.name for spec in columns)])


_ARROW: Final = {
    TypeKind.INT64: pa.int64(),
    TypeKind.UINT64: pa.uint64(),
    TypeKind.FLOAT64: pa.float64(),
    TypeKind.BOOL: pa.bool_(),
    TypeKind.STRING: pa.string(),
}


def _tag(name: str, array: Any) -> Any:
    if not pa.types.is_dictionary(array.type):
        array = _cast(name, array, pa.string()).dictionary_encode()
    return _cast(name, array, TAG_TYPE)


def _cast(name: str, array: Any, kind: pa.DataType) -> Any:
    try:
        return array.cast(kind)
    except pa.ArrowException as error:
        raise BadRequest(f"the column {name!r}: {str(error)[:200]}") from error


def _check_expansion(batches: Sequence[pa.RecordBatch], sent_bytes: int) -> None:
    """A long value in a dictionary may stand in every row: small to send, and huge where rows are plain."""
    allowed = EXPANSION_MAX * sent_bytes + 2**20
    for batch in batches:
        for column in batch.columns:
            if pa.types.is_dictionary(column.type) and len(column.dictionary):
                lengths = pc.binary_length(column.dictionary).take(column.indices)
                allowed -= pc.sum(lengths).as_py() or 0
    if allowed < 0:
        raise BadRequest(f"the dictionaries stand for more than {EXPANSION_MAX} times the bytes that were sent")


def _refuse_compression(data: bytes) -> None:
    """BadRequest for a compressed buffer: a small one could inflate to any size, and Arrow has no limit to give."""
    messages = pa.ipc.MessageReader.open_stream(pa.py_buffer(data))
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return
        if _is_compressed(message.metadata.to_pybytes()):
            raise BadRequest("the Arrow IPC stream is compressed; send it without compression")


def _is_compressed(metadata: bytes) -> bool:
    """Whether a Message's flatbuffer (Arrow's Message.fbs, which Arrow has verified) names a compression."""
    root = struct.unpack_from("<I", metadata)[0]
    kind = _field(metadata, root, 1)
    header = _table(metadata, root, 2)
    if kind is None or header is None:
        return False
    what = metadata[kind]
    if what == _DICTIONARY_BATCH:
        header = _table(metadata, header, 1)
    elif what != _RECORD_BATCH:
        return False
    return header is not None and _field(metadata, header, 3) is not None


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a table's field stands; None if it is not there."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0]
    at = 4 + 2 * number
    offset = struct.unpack_from("<H", data, vtable + at)[0] if at + 2 <= size else 0
    return table + offset if offset else None


def _table(data: bytes, table: int, number: int) -> int | None:
    """Where the table that a field refers to stands."""
    at = _field(data, table, number)
    return None if at is None else at + int(struct.unpack_from("<I", data, at)[0])
