"""COPY to and from files of the server, in the one folder that an operator may name (`query.copy_dir`).

What is copied out is written as the door would send it; what is copied in goes the way of an INSERT, with its promises.
Every Backend asks here before it plans a statement. In a cluster the folder is the gateway's.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import IO, TYPE_CHECKING, Any, Final

import pyarrow as pa

from engine.changes import ChangeKind, RowChange
from engine.copystatement import copy_of, is_copy
from engine.errors import InvalidStatement, NotReadOnly, NotSupported
from nodes.copyfolder import NewFile, open_old
from nodes.copylines import LINES, lines_in, lines_out
from nodes.insert import PIECE_ROWS, insert
from nodes.resulttext import ReadyResult
from storage.errors import NoSuchTable
from storage.schema import OFFSET_COLUMN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Iterator
    from pathlib import Path

    from engine.copystatement import Copy
    from nodes.backend import Backend, Principal, QueryRequest
    from storage.schema import Table

OUT: Final = {"parquet": "parquet", "csv": "csv", "json": "json", "jsonl": "jsonl", LINES: LINES}
IN: Final = ("parquet", "csv", LINES)
CSV_BLOCK_BYTES: Final = 4 * 2**20
BYTES_SCHEMA: Final = pa.schema([pa.field("bytes", pa.int64(), nullable=False)])


async def copy_if_asked(
    request: QueryRequest, backend: Backend, principal: Principal, folder: Path | None
) -> ReadyResult | None:
    """Carry COPY out; None if the statement is another one. Answers how many rows came in, or bytes went out.

    Raises NotSupported without a folder, InvalidStatement for a file that cannot be, and what reading and writing rows
    raise.
    """
    if not is_copy(request.text):
        return None
    if folder is None:
        raise NotSupported(
            "COPY is not allowed to touch this server's files; an operator names a folder for it with query.copy_dir. "
            "`runnel export` and `runnel import` use files where they run"
        )
    if not request.may_write:
        raise NotReadOnly("COPY changes something, and this request may not: send it by POST")
    copy = copy_of(request.text)
    if copy.query is None:
        return await _copy_in(copy, request, backend, principal, folder)
    return await _copy_out(
        copy, dataclasses.replace(request, text=copy.query, may_write=False), backend, principal, folder
    )


async def _pieces(
    copy: Copy, format: str, request: QueryRequest, backend: Backend, principal: Principal
) -> AsyncGenerator[bytes, None]:
    if format != LINES:
        return await backend.query_text(request, format, principal)
    table = (await backend.refresh()).table(request.database, copy.table)
    if table is None:
        raise InvalidStatement("COPY: line protocol has tags and fields, which only a table has: name one")
    return lines_out(table, await backend.query(request, principal))


async def _copy_out(
    copy: Copy, request: QueryRequest, backend: Backend, principal: Principal, folder: Path
) -> ReadyResult:
    file = copy.file
    format = OUT.get(_end(file))
    if format is None:
        raise InvalidStatement(f"COPY: {file!r}: end its name with one of {', '.join('.' + end for end in OUT)}")
    target = await asyncio.to_thread(NewFile, folder, file)
    try:
        size = 0
        pieces = await _pieces(copy, format, request, backend, principal)
        try:
            async for piece in pieces:
                size += await asyncio.to_thread(target.write, piece)
        finally:
            await pieces.aclose()
        await asyncio.to_thread(target.keep)
    finally:
        await asyncio.to_thread(target.close)
    return ReadyResult(pa.RecordBatch.from_arrays([pa.array([size], pa.int64())], schema=BYTES_SCHEMA))


async def _copy_in(
    copy: Copy, request: QueryRequest, backend: Backend, principal: Principal, folder: Path
) -> ReadyResult:
    if _end(copy.file) not in IN:
        raise InvalidStatement(f"COPY: {copy.file!r}: end its name with one of {', '.join('.' + end for end in IN)}")
    catalog = await backend.refresh()
    table = catalog.table(request.database, copy.table)
    if table is None:
        raise NoSuchTable(f"there is no table {copy.table!r}: COPY adds rows to one that is there")
    if table.view is not None:
        raise NotSupported(f"{copy.table!r} is a materialized view: its rows come from the table that it reads")
    opened = await asyncio.to_thread(open_old, folder, copy.file)
    change = RowChange(ChangeKind.INSERT, table.name, table.id)
    return await insert(backend, request.database, change, _FileRows(opened, copy.file, table), principal)


class _FileRows:
    """The rows of a file as those of its table (`nodes.backend.QueryResult`); closes the file."""

    def __init__(self, opened: IO[bytes], name: str, table: Table) -> None:
        self._opened = opened
        self._name = name
        self._table = table
        self._columns = [column for column in table.columns if column.storage_name != OFFSET_COLUMN]
        self.schema = pa.schema([(column.name, column.plain_type) for column in self._columns])

    async def __aiter__(self) -> AsyncIterator[pa.RecordBatch]:
        batches = self._batches()
        while (rows := await asyncio.to_thread(next, batches, None)) is not None:
            yield rows

    async def aclose(self) -> None:
        await asyncio.to_thread(self._opened.close)

    def _batches(self) -> Iterator[pa.RecordBatch]:
        try:
            for rows in self._rows():
                yield self._conform(rows)
        except (pa.ArrowException, OSError) as error:
            raise InvalidStatement(f"COPY: {self._name!r}: {error}") from error

    def _rows(self) -> Iterator[pa.RecordBatch]:
        if _end(self._name) == LINES:
            return lines_in(self._table, self._opened, self._name)
        return self._parquet() if _end(self._name) == "parquet" else self._csv()

    def _parquet(self) -> Iterator[pa.RecordBatch]:
        import pyarrow.parquet as pq

        yield from pq.ParquetFile(self._opened).iter_batches(PIECE_ROWS)

    def _csv(self) -> Iterator[pa.RecordBatch]:
        from pyarrow import csv

        types = {field.name: field.type for field in self.schema}
        read = csv.ReadOptions(block_size=CSV_BLOCK_BYTES)
        convert = csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        )  # what is left out is no text; "" is one
        yield from csv.open_csv(self._opened, read, convert_options=convert)

    def _conform(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """In the table's columns and types; a column that the file has not is NULL."""
        unknown = sorted(set(rows.schema.names) - set(self.schema.names))
        if unknown:
            raise InvalidStatement(f"COPY: {self._name!r} has a column {unknown[0]!r}, which the table has not")
        columns: list[Any] = [
            rows.column(field.name).cast(field.type)
            if field.name in rows.schema.names
            else pa.nulls(rows.num_rows, field.type)
            for field in self.schema
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def _end(file: str) -> str:
    return file.rpartition(".")[2].lower()
