"""The rows of a statement that writes, held whole and as its table stores them. Used by every Backend."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nodes.insert import plain
from storage.errors import RequestTooLarge
from storage.schema import OP_COLUMN, Role

if TYPE_CHECKING:
    from nodes.backend import QueryResult
    from storage.schema import Table


async def gathered(rows: QueryResult, bytes_max: int, too_many: str) -> pa.RecordBatch:
    """All rows; closes them. Raises RequestTooLarge, which says ``too_many``."""
    held: list[pa.RecordBatch] = []
    size = 0
    try:
        async for batch in rows:
            held.append(plain(batch))
            size += held[-1].nbytes
            if size > bytes_max:
                raise RequestTooLarge(too_many)
    finally:
        await rows.aclose()
    return pa.concat_batches(held) if held else plain(pa.RecordBatch.from_pylist([], rows.schema))


def stored(table: Table, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Under storage names, and without columns that have no value; `OP_COLUMN` as it is."""
    columns: dict[str, Any] = {}
    for name in rows.schema.names:
        if name == OP_COLUMN:
            columns[name] = rows.column(name)
            continue
        column = table.by_name[name]
        array = rows.column(name).cast(column.plain_type)
        array = array.dictionary_encode() if column.role is Role.TAG else array
        if column.role is Role.TIME or array.null_count < len(array):
            columns[column.storage_name] = array
    return pa.RecordBatch.from_pydict(columns)
