"""DataFiles: sorted, internally unique Parquet, one object each (DESIGN section 11, LOG L20, FORMAT F18, F19).

Blocking: callers run it off the event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.errors import StoreUnavailable
from storage.fold import fold
from storage.objects import CreateOutcome
from storage.schema import (
    OFFSET_COLUMN,
    OP_COLUMN,
    OP_COLUMN_ID,
    PARQUET,
    PARQUET_OPS,
    TIME_COLUMN,
    DataFile,
    Role,
)
from storage.store import data_path

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from storage.objects import ObjectStore
    from storage.schema import Table, TailBatch

ROW_GROUP_ROWS: Final = 131_072
"""Rows of a row group: small enough to skip, large enough for dictionaries and deltas to pay."""
BATCH_ROWS: Final = 8_192
"""Rows encoded at once: the bytes are those of pyarrow's own 1,024, for a fifth less CPU. A page ends with a batch
only, so with long strings it would grow too large: rows with string fields keep to `STRING_BATCH_ROWS`."""
STRING_BATCH_ROWS: Final = 1_024
CREATE_TRIES_MAX: Final = 5
"""New names to try when the outcome of a DataFile's create stays unknown; the name that lost is an orphan (L20)."""
OWN_FIELD_IDS: Final = {OFFSET_COLUMN: 2**31 - 1, OP_COLUMN: OP_COLUMN_ID}


def encode_parquet(table: Table, rows: pa.RecordBatch) -> pa.Buffer:
    """The bytes of a DataFile for folded ``rows`` (named by storage names, with their offsets)."""
    sink = pa.BufferOutputStream()
    schema = file_schema(table, rows.schema)
    with parquet_writer(table, schema, sink) as writer:
        writer.write_table(pa.Table.from_arrays(rows.columns, schema=schema), row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue()


def file_schema(table: Table, schema: pa.Schema) -> pa.Schema:
    """``schema`` with the columns' ids as Parquet's field ids (F19)."""
    fields = []
    for field in schema:
        column = table.by_storage_name.get(field.name)
        field_id = OWN_FIELD_IDS[field.name] if column is None else column.id
        fields.append(field.with_metadata({"PARQUET:field_id": str(field_id)}))
    return pa.schema(fields)


def parquet_writer(table: Table, schema: pa.Schema, sink: object) -> pq.ParquetWriter:
    """A writer of DataFiles whose columns are those of ``schema``, encoded as each is smallest."""
    encodings: dict[str, str] = {}
    dictionaries: list[str] = []
    for field in schema:
        column = table.by_storage_name.get(field.name)
        if field.name == OP_COLUMN or (column is not None and column.role is Role.TAG):
            dictionaries.append(field.name)
        elif pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
        elif pa.types.is_floating(field.type):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_string(field.type):
            dictionaries.append(field.name)
    has_strings = any(pa.types.is_string(field.type) for field in schema)
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=dictionaries,
        column_encoding=encodings,
        write_batch_size=STRING_BATCH_ROWS if has_strings else BATCH_ROWS,
        store_schema=False,
        write_page_index=True,
        version="2.6",
    )


def kind_of(columns: Collection[str]) -> str:
    """The kind of a DataFile with these columns: one whose rows have ops must not be read without heeding them."""
    return PARQUET_OPS if OP_COLUMN in columns else PARQUET


def create_datafile(store: ObjectStore, paths: Iterable[str], data: pa.Buffer | memoryview) -> str:
    """Create the object exclusively under the first name whose outcome is certain."""
    tries = 0
    for path in paths:
        tries += 1
        if store.create(path, [memoryview(data)]) is CreateOutcome.CREATED:
            return path
    raise StoreUnavailable(f"{store.url}: a DataFile's create stayed unknown {tries} times")


def write_datafile(
    store: ObjectStore, table: Table, log_id: int, epoch: int, partition: int, tail: Sequence[TailBatch]
) -> DataFile:
    """Fold ``tail``, write it as one DataFile, and say what a Checkpoint has to name."""
    rows = fold(table, tail)
    data = encode_parquet(table, rows)
    paths = [data_path(log_id, table.database_id, table.id, epoch) for _ in range(CREATE_TRIES_MAX)]
    path = create_datafile(store, paths, data)
    times = rows.column(TIME_COLUMN).cast(pa.int64()).to_numpy(zero_copy_only=False)
    offsets = rows.column(OFFSET_COLUMN).to_numpy(zero_copy_only=False)
    low = min(batch.first_offset for batch in tail)  # the layer stands for all its offsets, also folded ones (L25)
    return DataFile(
        path=path,
        table_id=table.id,
        partition=partition,
        order_low=low,
        order_high=int(np.max(offsets)),
        offset_low=low,
        offset_high=int(np.max(offsets)),
        time_low=int(np.min(times)),
        time_high=int(np.max(times)),
        rows=rows.num_rows,
        bytes=data.size,
        schema_version=table.version,
        kind=kind_of(rows.schema.names),
    )
