"""INSERT: the rows of a statement into a table, with the durability of any write.

The engine says which rows (`engine.changes`); here they become Batches and are written in pieces,
each under an idempotency key of its own, so that it can be sent again. A piece is atomic per shard (LOG L17), the
statement is not: what was written before an error stands, and the error says how much. Driven by `nodes.rowchanges`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import ClusterError
from engine.errors import EngineError, InvalidStatement
from nodes.backend import Batch
from nodes.resulttext import ReadyResult
from storage.errors import NoSuchTable, StorageError
from storage.schema import Role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import numpy.typing as npt

    from engine.changes import RowChange
    from nodes.backend import Backend, Principal, QueryResult
    from storage.schema import Column, Table

PIECE_ROWS: Final = 65_536
PIECE_BYTES: Final = 8 * 2**20
"""A piece has at most so many rows, and is cut when it has more bytes."""
VALUE_BYTES: Final = 8
"""Of a value that is no text, or beside its text."""
RETRY_SECONDS_MAX: Final = 30.0
"""How long a piece is sent again while the shards say to try later."""
RETRY_FIRST_SECONDS: Final = 0.05
RETRY_PAUSE_SECONDS_MAX: Final = 1.0
COUNT_SCHEMA: Final = pa.schema([pa.field("count", pa.int64(), nullable=False)])


async def insert(
    backend: Backend, database: str, change: RowChange, rows: QueryResult, principal: Principal
) -> ReadyResult:
    """Write ``rows``, which have the columns of their table as users see them; closes them. Answers how many they were.

    Raises what the statement or a write raises, with how many rows had been written.
    """
    written = 0
    now = time.time_ns()
    try:
        async for piece in _pieces(rows):
            table = await table_of(backend, database, change, piece.schema)
            batch = await asyncio.to_thread(to_batch, table, piece, now)
            await _write(backend, batch, principal)
            written += piece.num_rows
    except (EngineError, StorageError, ClusterError) as error:
        if written:
            error.args = (f"{error} ({written} rows of the INSERT were written before)",)
        raise
    finally:
        await rows.aclose()
    return count_result(written)


def count_result(rows: int) -> ReadyResult:
    """What a statement that writes answers."""
    return ReadyResult(pa.RecordBatch.from_arrays([pa.array([rows], pa.int64())], schema=COUNT_SCHEMA))


async def _pieces(rows: QueryResult) -> AsyncIterator[pa.RecordBatch]:
    """The batches gathered, or cut, to pieces."""
    held: list[pa.RecordBatch] = []
    count = size = 0
    async for batch in rows:
        for cut in _cut(batch):
            part = plain(cut)
            if held and (count + part.num_rows > PIECE_ROWS or size + part.nbytes > PIECE_BYTES):
                yield _joined(held)
                held, count, size = [], 0, 0
            held.append(part)
            count, size = count + part.num_rows, size + part.nbytes
    if held:
        yield _joined(held)


def plain(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Strings by themselves: what views of them share has no size that could be counted."""
    fields = [pa.field(f.name, pa.string()) if pa.types.is_string_view(f.type) else f for f in batch.schema]
    return batch.cast(pa.schema(fields))


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Before strings are by themselves: a text that all rows of a batch share may be long."""
    ends = np.cumsum(_row_bytes(batch))
    at = 0
    while at < batch.num_rows:
        fitting = int(np.searchsorted(ends, (ends[at - 1] if at else 0) + PIECE_BYTES, side="right"))
        end = max(at + 1, min(fitting, at + PIECE_ROWS))
        yield batch.slice(at, end - at)
        at = end


def _row_bytes(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """About what each row takes, by itself."""
    sizes = np.full(batch.num_rows, VALUE_BYTES * batch.num_columns, np.int64)
    for column in batch.columns:
        if pa.types.is_string_view(column.type):
            sizes += _view_lengths(column)
        elif pa.types.is_string(column.type):
            sizes += pc.fill_null(pc.binary_length(column), 0).to_numpy(zero_copy_only=False)
    return sizes


def _view_lengths(column: pa.StringViewArray) -> npt.NDArray[np.int32]:
    """Arrow counts no views: each has 16 bytes, and begins with its text's length."""
    views = column.buffers()[1]
    if views is None or len(column) == 0:
        return np.zeros(len(column), np.int32)
    lengths = np.frombuffer(views, np.int32)[4 * column.offset : 4 * (column.offset + len(column)) : 4]
    return np.where(column.is_valid().to_numpy(zero_copy_only=False), lengths, 0)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.concat_batches(batches) if len(batches) > 1 else batches[0]


async def table_of(backend: Backend, database: str, change: RowChange, rows: pa.Schema | None = None) -> Table:
    """The table that a statement was planned for, with the columns of its ``rows``, and of its range delete: its entry
    names this table's version, and whoever reads it knows the columns then (L30).

    Raises NoSuchTable when it is gone, also when there is a new one of its name (L28). Before that is said the Catalog
    is proved current (L29): the node that planned the statement may know a newer one.
    """
    table = backend.catalog.table(database, change.table)
    if table is None or not _is_theirs(table, change, rows):
        table = (await backend.refresh()).table(database, change.table)
    if table is None or not _is_theirs(table, change, rows):
        raise NoSuchTable(f"table {change.table!r} was dropped")
    return table


def _is_theirs(table: Table, change: RowChange, rows: pa.Schema | None) -> bool:
    tags = () if change.delete is None else change.delete.tags
    is_known = all(tag.column_id in table.by_id for tag in tags)
    return table.id == change.table_id and is_known and all(field.name in table.by_name for field in rows or ())


def to_batch(table: Table, rows: pa.RecordBatch, now_ns: int) -> Batch:
    """Rows under users' names as a Batch. A time that is NULL is ``now_ns``; columns without a value are left out.

    InvalidStatement for a row that has no field: there would be nothing to write of it.
    """
    fields: list[pa.Field] = []
    arrays: list[Any] = []
    has_value = None
    for name in rows.schema.names:
        column = table.by_name[name]
        array = _array(column, rows.column(name), now_ns)
        if column.role is Role.FIELD:
            valid = array.is_valid()
            has_value = valid if has_value is None else pc.or_(has_value, valid)
        if array.null_count < len(array):
            arrays.append(array)
            fields.append(pa.field(column.storage_name, column.arrow_type, nullable=column.role is not Role.TIME))
    if has_value is None or not pc.all(has_value).as_py():
        raise InvalidStatement(f"INSERT INTO {table.name!r}: each row needs a value in one field at least")
    return Batch(table, pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)))


def _array(column: Column, array: Any, now_ns: int) -> Any:
    if column.role is Role.TIME:
        return pc.fill_null(array.cast(column.arrow_type), pa.scalar(now_ns, column.arrow_type))
    if column.role is not Role.TAG:
        return array.cast(column.arrow_type)
    text = array.cast(pa.string())
    absent = pc.equal(text, "")  # as line protocol has it: a tag without text is a tag that is not there
    return pc.if_else(absent, pa.scalar(None, pa.string()), text).dictionary_encode()


async def _write(backend: Backend, batch: Batch, principal: Principal) -> None:
    """Write a piece, again while that may help: under one key it is written once."""
    key = uuid.uuid4().hex
    deadline = time.monotonic() + RETRY_SECONDS_MAX
    pause = RETRY_FIRST_SECONDS
    while True:
        try:
            return await backend.write([batch], principal, idempotency_key=key)
        except (StorageError, ClusterError) as error:
            if not error.retriable or time.monotonic() + pause > deadline:
                raise
        await asyncio.sleep(pause)
        pause = min(2 * pause, RETRY_PAUSE_SECONDS_MAX)
