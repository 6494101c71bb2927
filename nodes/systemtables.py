"""The tables of the schema ``system``, built from what this process knows; columns as InfluxDB 3 names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

from nodes.units import show_duration
from storage.cutoffs import KEEP, higher, limit_of, period_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nodes.backend import CatalogView
    from nodes.status import QueryStatus
    from storage.schema import Database, PartitionSnapshot, Table, TableSnapshot

PARQUET_FILES_SCHEMA: Final = pa.schema(
    [
        ("table_name", pa.string()), ("path", pa.string()), ("size_bytes", pa.uint64()), ("row_count", pa.uint64()),
        ("min_time", pa.int64()), ("max_time", pa.int64()), ("partition", pa.uint32()),
        ("offset_low", pa.int64()), ("offset_high", pa.int64()), ("kind", pa.string()), ("table_id", pa.uint64()),
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
VIEWS_SCHEMA: Final = pa.schema(
    [("name", pa.string()), ("table_name", pa.string()), ("bucket", pa.string()), ("definition", pa.string())]
)
"""Names that InfluxDB 3 has mean what they mean there; ``issue_time`` is UTC, as every time."""


RETENTION_SCHEMA: Final = pa.schema(
    [
        ("database_name", pa.string()), ("table_name", pa.string()), ("retention", pa.string()),
        ("retention_bytes", pa.int64()), ("keeps_ns", pa.int64()), ("keeps_bytes", pa.int64()),
        ("hidden_before", pa.timestamp("ns")), ("file_bytes", pa.int64()), ("files", pa.int64()),
    ]
)  # fmt: skip
"""``retention`` and ``retention_bytes`` are what is set, ``keeps_…`` what holds; NULL is nothing set, and no end."""


def parquet_files(parts: Sequence[tuple[Table, PartitionSnapshot]]) -> pa.Table:
    """Every live DataFile, and every slice of a bundle: times in ns; offsets are the range of the layer (LOG L25)."""
    rows = [
        (
            table.name,
            f.path,
            f.bytes,
            f.rows,
            f.time_low,
            f.time_high,
            f.partition,
            f.offset_low,
            f.offset_high,
            f.kind,
            f.table_id,
        )
        for table, part in parts
        for f in part.files
    ]
    return _table(PARQUET_FILES_SCHEMA, rows)


def queries(found: Sequence[QueryStatus]) -> pa.Table:
    """Every query that waits or runs. Of a node that did not answer there is a row of NULLs with its name."""
    rows = [tuple(getattr(query, name) for name in QUERIES_SCHEMA.names) for query in found]
    return _table(QUERIES_SCHEMA, rows)


def materialized_views(catalog: CatalogView, database: str) -> pa.Table:
    """Every materialized view of a database; ``bucket`` is how long one of its buckets of time is."""
    rows = [
        (
            table.name,
            catalog.tables_by_id[table.view.table_id].name,
            show_duration(table.view.width_ns / 1e9),
            table.view.text,
        )
        for table in catalog.tables(database)
        if table.view is not None
    ]
    return _table(VIEWS_SCHEMA, rows)


def setting_age(what: Database | Table) -> str | None:
    """The period that a database or a table has itself, as people write it."""
    if what.retention_ns is None:
        return None
    return "none" if what.retention_ns == KEEP else show_duration(what.retention_ns / 1e9)


def retention(database: Database, found: Sequence[TableSnapshot]) -> pa.Table:
    """A row for the database and one for each table: what it is kept by, what it has, what is hidden of it by now."""
    stored = [[file.bytes for part in one.partitions for file in part.files] for one in found]
    own = (database.retention_ns, database.retention_bytes)
    every = [size for sizes in stored for size in sizes]
    rows: list[tuple[object, ...]] = [
        (database.name, None, setting_age(database), own[1], *own, None, sum(every), len(every))
    ]
    for one, sizes in zip(found, stored, strict=True):
        limit = limit_of(one.table, database)
        cutoffs = [higher(one.cutoff_ns, part.cutoff_ns) for part in one.partitions]
        hidden = max((cutoff for cutoff in cutoffs if cutoff is not None), default=None)
        rows.append((
            database.name, one.table.name, setting_age(one.table), one.table.retention_bytes,
            period_of(one.table, database), None if limit is None else limit.bytes, hidden, sum(sizes), len(sizes),
        ))  # fmt: skip
    return _table(RETENTION_SCHEMA, rows)


def _table(schema: pa.Schema, rows: Sequence[tuple[object, ...]]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(schema)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)
