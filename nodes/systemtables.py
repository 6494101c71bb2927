"""The tables of the schema ``system``, built from what this process knows; columns as InfluxDB 3 names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodes.status import QueryStatus
    from storage.schema import PartitionSnapshot, Table

PARQUET_FILES_SCHEMA: Final = pa.schema(
    [
        ("table_name", pa.string()), ("path", pa.string()), ("size_bytes", pa.uint64()), ("row_count", pa.uint64()),
        ("min_time", pa.int64()), ("max_time", pa.int64()), ("partition", pa.uint32()),
        ("offset_low", pa.int64()), ("offset_high", pa.int64()),
    ]
)  # fmt: skip
QUERIES_SCHEMA: Final = pa.schema(
    [
        ("id", pa.string()), ("phase", pa.string()), ("issue_time", pa.timestamp("ns")), ("database", pa.string()),
        ("query_text", pa.string()), ("node", pa.string()), ("door", pa.string()), ("client", pa.string()),
        ("request_id", pa.string()), ("waiting_seconds", pa.float64()), ("planning_seconds", pa.float64()),
        ("running_seconds", pa.float64()), ("sending_seconds", pa.float64()), ("total_seconds", pa.float64()),
        ("rows", pa.uint64()), ("bytes", pa.uint64()), ("parquet_files", pa.uint64()), ("parquet_bytes", pa.uint64()),
        ("rung", pa.string()), ("workers", pa.uint32()),
    ]
)  # fmt: skip
"""Names that InfluxDB 3 has mean what they mean there; ``issue_time`` is UTC, as every time."""


def parquet_files(parts: Sequence[tuple[Table, PartitionSnapshot]]) -> pa.Table:
    """Every live DataFile: times in ns; offsets are the range of the layer (LOG L25)."""
    rows = [
        (table.name, f.path, f.bytes, f.rows, f.time_low, f.time_high, f.partition, f.offset_low, f.offset_high)
        for table, part in parts
        for f in part.files
    ]
    return _table(PARQUET_FILES_SCHEMA, rows)


def queries(found: Sequence[QueryStatus]) -> pa.Table:
    """Every query that waits or runs. Of a node that did not answer there is a row of NULLs with its name."""
    rows = [tuple(getattr(query, name) for name in QUERIES_SCHEMA.names) for query in found]
    return _table(QUERIES_SCHEMA, rows)


def _table(schema: pa.Schema, rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
