"""The tables of the schema ``system``, built from what this process knows; columns as InfluxDB 3 names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.schema import PartitionSnapshot, Table

PARQUET_FILES_SCHEMA: Final = pa.schema(
    [
        ("table_name", pa.string()), ("path", pa.string()), ("size_bytes", pa.uint64()), ("row_count", pa.uint64()),
        ("min_time", pa.int64()), ("max_time", pa.int64()), ("partition", pa.uint32()),
        ("offset_low", pa.int64()), ("offset_high", pa.int64()),
    ]
)  # fmt: skip


def parquet_files(parts: Sequence[tuple[Table, PartitionSnapshot]]) -> pa.Table:
    """Every live DataFile: times in ns; offsets are the range of the layer (LOG L25)."""
    rows = [
        (table.name, f.path, f.bytes, f.rows, f.time_low, f.time_high, f.partition, f.offset_low, f.offset_high)
        for table, part in parts
        for f in part.files
    ]
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(PARQUET_FILES_SCHEMA)
    arrays = [pa.array(c, field.type) for c, field in zip(columns, PARQUET_FILES_SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=PARQUET_FILES_SCHEMA)
