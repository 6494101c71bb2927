"""DataFiles: sorted, internally unique Parquet, one object each (DESIGN section 11, LOG L20, FORMAT F18, F19).

Blocking: callers run it off the event loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.columnbounds import with_bounds
from storage.errors import StoreUnavailable
from storage.fold import fold
from storage.keys import row_keys
from storage.objects import CreateOutcome
from storage.schema import (
    KEY_COLUMN,
    KEYS,
    OFFSET_COLUMN,
    OP_COLUMN,
    OP_COLUMN_ID,
    OPS,
    PARQUET,
    SERIES_COLUMN,
    TIME_COLUMN,
    WHOLE,
    DataFile,
    Op,
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
PAGE_BYTES: Final = 2**20
"""Of strings in a page: fewer rows are encoded at once where they are long, for whoever reads holds whole pages."""
CREATE_TRIES_MAX: Final = 5
"""New names to try when the outcome of a DataFile's create stays unknown; the name that lost is an orphan (L20)."""
OWN_FIELD_IDS: Final = {
    OFFSET_COLUMN: 2**31 - 1,
    OP_COLUMN: OP_COLUMN_ID,
    SERIES_COLUMN: 2**31 - 5,
    KEY_COLUMN: 2**31 - 6,
}
SERIES_ROWS_MIN: Final = 64
"""A file with fewer rows of a series, on average, has no keys: they would take more room than they save time."""
REPEATED: Final = frozenset({OP_COLUMN, SERIES_COLUMN, KEY_COLUMN})
"""Columns of ours that have the same value in many rows one after the other, as tags have."""
BLOOM_VALUES_MIN: Final = 64
"""A tag with fewer values has no Bloom filter: nearly every row group has each of them."""
BLOOM_VALUES_MAX: Final = 65_536
"""A Bloom filter is made for at most so many values, 64 KiB: with more it lets more through. pyarrow holds those of
all row groups until the file ends, and each as large as it was made for."""
BLOOM_FALSE: Final = 0.05
"""How often a Bloom filter lets a row group through that has no such value. About a byte and a half for each value."""


def file_rows(table: Table, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, str]:
    """Folded rows as a DataFile has them, with their keys if these are worth it, and the file's kind."""
    kept = with_keys(table, rows, rows.num_rows // SERIES_ROWS_MIN)
    return kept, kind_of(kept.schema.names, is_whole(table, rows))


def with_keys(table: Table, rows: pa.RecordBatch, series_max: int) -> pa.RecordBatch:
    """Folded rows with the hashes of their series and their keys, unless there are more than ``series_max`` series."""
    found = row_keys(table, rows, series_max)
    if found is None:
        return rows
    names = [*rows.schema.names, SERIES_COLUMN, KEY_COLUMN]
    return pa.RecordBatch.from_arrays([*rows.columns, *found], names)


def is_whole(table: Table, rows: pa.RecordBatch) -> bool:
    """Whether each of these rows is a put, a delete, or has a value in every field: as good as a put (F11)."""
    names = frozenset(rows.schema.names)
    if OP_COLUMN in names:
        ops = pc.fill_null(rows.column(OP_COLUMN), table.default_op.code)
        rows = rows.filter(pc.equal(ops, Op.PATCH.code))
    elif table.default_op is not Op.PATCH:
        return True
    fields = [field.storage_name for field in table.fields]
    return not rows.num_rows or all(name in names and not rows.column(name).null_count for name in fields)


def encode_parquet(table: Table, rows: pa.RecordBatch) -> pa.Buffer:
    """The bytes of a DataFile for folded ``rows`` (named by storage names, with their offsets)."""
    sink = pa.BufferOutputStream()
    schema = file_schema(table, rows.schema)
    content = pa.Table.from_arrays(rows.columns, schema=schema)
    with parquet_writer(table, content, sink) as writer:
        writer.write_table(content, row_group_size=ROW_GROUP_ROWS)
    return sink.getvalue()


def file_schema(table: Table, schema: pa.Schema) -> pa.Schema:
    """``schema`` with the columns' ids as Parquet's field ids (F19)."""
    fields = []
    for field in schema:
        column = table.by_storage_name.get(field.name)
        field_id = OWN_FIELD_IDS[field.name] if column is None else column.id
        fields.append(field.with_metadata({"PARQUET:field_id": str(field_id)}))
    return pa.schema(fields)


def batch_rows(rows: pa.RecordBatch | pa.Table) -> int:
    """How many of these rows to encode at once, so that no page grows too large."""
    found = BATCH_ROWS
    for column in rows.columns:
        if pa.types.is_string(column.type):
            length = max((_text_length(array) for array in _chunks(column)), default=0)
            found = min(found, STRING_BATCH_ROWS, max(1, PAGE_BYTES // max(1, length)))
    return found


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.StringArray]:
    return column.chunks if isinstance(column, pa.ChunkedArray) else [column]


def _text_length(array: pa.StringArray) -> int:
    """The mean length of `STRING_BATCH_ROWS` strings that follow each other, where they are longest."""
    offsets = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    edges = np.append(np.arange(0, len(array), STRING_BATCH_ROWS), len(array))
    sizes = np.diff(offsets[edges]) // np.maximum(1, np.diff(edges))
    return int(sizes.max(initial=0))


def parquet_writer(table: Table, first: pa.Table, sink: object, without: Collection[str] = ()) -> pq.ParquetWriter:
    """A writer of DataFiles whose columns, and whose first rows, are those of ``first``.

    Columns are encoded as each is smallest; where tags have many values, row groups get Bloom filters of them. Later
    rows have NaN only in columns that ``first`` has it in, or that are in ``without``.
    """
    schema = first.schema
    encodings: dict[str, str] = {}
    dictionaries: list[str] = []
    for field in schema:
        column = table.by_storage_name.get(field.name)
        if field.name in REPEATED or (column is not None and column.role is Role.TAG):
            dictionaries.append(field.name)
        elif pa.types.is_integer(field.type) or pa.types.is_timestamp(field.type):
            encodings[field.name] = "DELTA_BINARY_PACKED"
        elif pa.types.is_floating(field.type):
            encodings[field.name] = "BYTE_STREAM_SPLIT"
        elif pa.types.is_string(field.type):
            dictionaries.append(field.name)
    return pq.ParquetWriter(
        sink,
        schema,
        compression="zstd",
        use_dictionary=dictionaries,
        column_encoding=encodings,
        write_batch_size=batch_rows(first),
        store_schema=False,
        write_statistics=with_bounds(first, without),
        write_page_index=True,
        bloom_filter_options=_bloom_filters(table, first),
        version="2.6",
    )


def _bloom_filters(table: Table, first: pa.Table) -> dict[str, dict[str, float]]:
    """pyarrow's options by the columns' names.

    Rows are sorted by the tags, the first of them first: of that one each row group has a short range, and its
    statistics say as much. Measured on 4 M rows in 8 files, each with 4,000 values of the third tag: `WHERE` on one
    value takes 10 ms of CPU in place of 30, for 0.2 % of the bytes, and no CPU that could be seen while writing.
    """
    filters: dict[str, dict[str, float]] = {}
    for column in table.tags[1:]:
        place = first.schema.get_field_index(column.storage_name)
        chunks = first.column(place).chunks if place >= 0 else []
        values = max((len(chunk.dictionary) for chunk in chunks), default=0)
        if values >= BLOOM_VALUES_MIN:
            filters[column.storage_name] = {"ndv": min(values, BLOOM_VALUES_MAX), "fpp": BLOOM_FALSE}
    return filters


def kind_of(columns: Collection[str], whole: bool = False) -> str:
    """The kind of a DataFile with these columns: one whose rows have ops must not be read without heeding them."""
    traits = ((OPS, OP_COLUMN in columns), (KEYS, KEY_COLUMN in columns), (WHOLE, whole))
    return "-".join((PARQUET, *(trait for trait, has_it in traits if has_it)))


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
) -> DataFile | None:
    """Fold ``tail``, write it as one DataFile, and say what a Checkpoint has to name; None if no row is left of it."""
    rows = fold(table, tail)
    if not rows.num_rows:
        return None
    kept, kind = file_rows(table, rows)
    data = encode_parquet(table, kept)
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
        kind=kind,
    )
