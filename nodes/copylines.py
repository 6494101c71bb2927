"""COPY to and from files of line protocol. Driven by `nodes.copying`.

Lines are read by the same parser, and refused for the same reasons, as those that a client writes; what is refused ends
the COPY and names its line.
"""

from __future__ import annotations

import time
from typing import IO, TYPE_CHECKING, Final

import pyarrow as pa

from engine.errors import InvalidStatement
from nodes.exitcodes import CommandFailed
from nodes.gateway.batches import TableShapes
from nodes.insert import PIECE_ROWS, plain
from nodes.linebodies import bodies_of
from nodes.rowlines import joined, to_lines
from storage.schema import TIME_COLUMN
from wire.lineprotocol import Precision, create_parser

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from nodes.backend import QueryResult
    from storage.schema import Table
    from wire.lineprotocol import KnownTable, Parsed, ParsedTable

LINES: Final = "lp"
"""What the names of such files end with."""


async def lines_out(table: Table, rows: QueryResult) -> AsyncGenerator[bytes, None]:
    """The rows of a table as lines with times in ns; closes them. Raises InvalidStatement for what lines cannot say."""
    tags = [tag.name for tag in table.tags]
    try:
        async for batch in rows:
            try:
                yield joined(to_lines(table.name, plain(batch), tags, TIME_COLUMN))
            except CommandFailed as error:
                raise InvalidStatement(f"COPY {table.name!r}: {error}") from error
    finally:
        await rows.aclose()


def lines_in(table: Table, opened: IO[bytes], file: str) -> Iterator[pa.RecordBatch]:
    """The rows of the lines under users' names. Raises InvalidStatement for the first line that cannot be one."""
    parser, known = create_parser(), TableShapes().known(table)
    now = time.time_ns()

    def look_up(name: str) -> KnownTable | None:
        return known if name == table.name else None

    for body in bodies_of(opened, opened, file, PIECE_ROWS):
        parsed = parser.parse(
            [body.data], precision=Precision.NANOSECOND, now_ns=now, known=look_up, all_or_nothing=[True]
        )
        _check(parsed, table, file, body.first_line)
        yield from (_batch(part) for part in parsed.tables if part.rows)


def _check(parsed: Parsed, table: Table, file: str, first_line: int) -> None:
    for error in parsed.errors:
        raise InvalidStatement(
            f"COPY: {file!r}, line {first_line + error.line - 1}: {error.message}; rows of earlier lines may be written"
        )
    for part in parsed.tables:
        if part.rows and part.name != table.name:
            raise InvalidStatement(f"COPY: {file!r} has a line of {part.name!r}, and goes into {table.name!r}")


def _batch(part: ParsedTable) -> pa.RecordBatch:
    times = pa.Array.from_buffers(pa.timestamp("ns"), part.rows, [None, pa.py_buffer(part.time)])
    columns = {TIME_COLUMN: times}
    columns |= {tag.name: tag.values.cast(pa.string()) for tag in part.tags}
    columns |= {field.name: field.values for field in part.fields}
    return pa.RecordBatch.from_pydict(columns)
