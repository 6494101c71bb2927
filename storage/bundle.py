"""Bundles: one Parquet object with the rows of many partitions that have few (FORMAT F18, LOG L20). Blocking.

`storage.shard` drives it for a Checkpoint's small tails. An object costs some milliseconds and an fsync, or a request,
however little is in it; ten thousand tables of one row are ten thousand objects or, here, one.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.columnbounds import with_bounds
from storage.datafile import CREATE_TRIES_MAX, create_datafile, write_datafile
from storage.fold import fold
from storage.schema import (
    BUNDLE,
    BUNDLE_OPS,
    OFFSET_COLUMN,
    OP_COLUMN,
    OP_COLUMN_ID,
    PARTITION_COLUMN,
    TABLE_COLUMN,
    TIME_COLUMN,
    DataFile,
    Op,
)
from storage.slices import COLUMNS_MAX, SLICE_COLUMN, Bin, Slice, binned, fold_slices, numbers_of, tags_of, with_number
from storage.store import bundle_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from storage.objects import ObjectStore
    from storage.schema import Column, Table, TailBatch

    Ints = npt.NDArray[np.int64]

SLICE_ROWS_MAX: Final = 4_096
"""More rows of a partition are worth an object of their own."""
SLICE_BYTES_MAX: Final = 256 * 2**10
"""The same in bytes: of a tail in memory, of slices that are merged in objects."""
SLICES_MIN: Final = 2
"""One alone is no bundle."""
ROWS_MAX: Final = 262_144
"""Rows of a bundle."""
CELLS_MAX: Final = 2 * 2**20
"""Rows times columns of a bundle: most may be NULL, and take their room in memory all the same."""
BYTES_MAX: Final = 32 * 2**20
"""Of a bundle's rows in memory, about: by what all rows of a merge have on the average."""
GROUP_ROWS_MIN: Final = 1_024
"""Rows of a row group at least: who reads a slice decodes those that it is in, and no others, by their statistics."""
GROUPS_MAX: Final = 64
"""Row groups of a bundle at most; and column chunks, each of which the footer describes:"""
CHUNKS_MAX: Final = 2_048
FIELD_IDS: Final = {
    OFFSET_COLUMN: 2**31 - 1,
    OP_COLUMN: OP_COLUMN_ID,
    TABLE_COLUMN: 2**31 - 7,
    PARTITION_COLUMN: 2**31 - 8,
}
"""Other columns have none: an id is unique in its table only."""
FIRST: Final = (TABLE_COLUMN, PARTITION_COLUMN, TIME_COLUMN)
LAST: Final = (OP_COLUMN, OFFSET_COLUMN)


@dataclass(frozen=True, slots=True)
class SliceOf:
    """Whose rows a slice has, and the ranges that it stands for (L25); None ends where its rows end."""

    table: Table
    partition: int
    orders: tuple[int, int | None]
    offsets: tuple[int, int | None]


@dataclass(frozen=True, slots=True)
class SmallTail:
    """A partition's tail with few rows, and the columns that it has."""

    table: Table
    partition: int
    batches: tuple[TailBatch, ...]
    columns: tuple[Column, ...]


def sorted_out(
    tables: Callable[[int], Table], tails: Mapping[tuple[int, int], tuple[TailBatch, ...]]
) -> tuple[list[SmallTail], list[tuple[Table, int, tuple[TailBatch, ...]]]]:
    """The tails that go into bundles, and the others."""
    small: list[SmallTail] = []
    large: list[tuple[Table, int, tuple[TailBatch, ...]]] = []
    for (table_id, partition), batches in tails.items():
        table = tables(table_id)
        found = small_tail(table, partition, batches)
        if found is None:
            large.append((table, partition, batches))
        else:
            small.append(found)
    if len(small) < SLICES_MIN:
        return [], [*large, *((one.table, one.partition, one.batches) for one in small)]
    return small, large


def small_tail(table: Table, partition: int, batches: Sequence[TailBatch]) -> SmallTail | None:
    """None if it is not small, or not of the plain kind."""
    if sum(batch.rows.num_rows for batch in batches) > SLICE_ROWS_MAX:
        return None
    if sum(batch.rows.nbytes for batch in batches) > SLICE_BYTES_MAX or table.default_op is not Op.PATCH:
        return None
    if len(table.columns) > COLUMNS_MAX:
        return None
    names = {name for batch in batches for name in batch.rows.schema.names} - {OP_COLUMN}
    columns = tuple(table.by_storage_name[name] for name in sorted(names) if name in table.by_storage_name)
    return SmallTail(table, partition, tuple(batches), columns) if len(columns) == len(names) else None


def write_tails(store: ObjectStore, log_id: int, epoch: int, tails: Sequence[SmallTail]) -> list[DataFile]:
    """Fold each of ``tails``, write them into as few bundles as they fit, and say what a Checkpoint has to name.

    There is no entry for one of which no row is left. Raises StoreUnavailable, StoreFull.
    """
    tails = sorted(tails, key=lambda tail: (tail.table.id, tail.partition))
    slices = []
    for tail in tails:
        low = min(batch.first_offset for batch in tail.batches)  # it stands for all its offsets, also folded ones (L25)
        slices.append(SliceOf(tail.table, tail.partition, (low, None), (low, None)))
    made: list[DataFile] = []
    for one in binned(map(_slice, tails)):
        if len(one.numbers) < SLICES_MIN:
            (tail,) = (tails[number] for number in one.numbers)
            file = write_datafile(store, tail.table, log_id, epoch, tail.partition, tail.batches)
            made += [] if file is None else [file]
            continue
        folded = [fold_slices(tags, one.kinds, parts) for tags, parts in _parts(one, tails).items()]
        made += create_bundles(store, _names(log_id, epoch), slices, folded)
    return made


def _slice(tail: SmallTail) -> Slice:
    rows = sum(batch.rows.num_rows for batch in tail.batches)
    return Slice((tail.table.id, tail.partition), tail.columns, tail.table.columns, rows)


def _names(log_id: int, epoch: int) -> Iterator[str]:
    """Without end: into how many objects the rows of a bin go is seen when they are folded."""
    while True:
        yield bundle_path(log_id, epoch)


def _parts(one: Bin, tails: Sequence[SmallTail]) -> dict[tuple[str, ...], list[pa.Table]]:
    """The rows of a bin by their tables' tags: one part for each schema of batches, and one for each tail with deletes.

    Of a single row a table of its own costs more than everything else that is done with it.
    """
    alike: defaultdict[tuple[str, ...], defaultdict[pa.Schema, list[tuple[int, TailBatch]]]]
    alike = defaultdict(lambda: defaultdict(list))
    found: defaultdict[tuple[str, ...], list[pa.Table]] = defaultdict(list)
    for number in one.numbers:
        tail = tails[number]
        tags = tags_of(tail.table)
        if any(batch.delete is not None for batch in tail.batches):
            rows = pa.Table.from_batches([fold(tail.table, tail.batches)])
            if rows.num_rows:
                found[tags].append(with_number(rows, np.full(rows.num_rows, number)))
            continue
        for batch in tail.batches:
            alike[tags][batch.rows.schema].append((number, batch))
    for tags, schemas in alike.items():
        found[tags] += [_together(schema, batches) for schema, batches in schemas.items()]
    return found


def _together(schema: pa.Schema, batches: Sequence[tuple[int, TailBatch]]) -> pa.Table:
    counts = [batch.rows.num_rows for _, batch in batches]
    rows = pa.Table.from_batches([batch.rows for _, batch in batches], schema)
    shifts = np.repeat(np.array([b.first_offset for _, b in batches]) - (np.cumsum(counts) - counts), counts)
    rows = rows.append_column(OFFSET_COLUMN, pa.array(np.arange(len(shifts)) + shifts, pa.int64()))
    return with_number(rows, np.repeat(np.array([number for number, _ in batches]), counts))


def create_bundles(
    store: ObjectStore, names: Iterator[str], slices: Sequence[SliceOf], folded: Sequence[pa.Table]
) -> list[DataFile]:
    """Create objects of the rows of one bin, each of them with all rows of a slice; what a Checkpoint has to name.

    ``folded`` as `fold_slices` makes them, with the numbers of ``slices``, which are in the order of their partitions.
    """
    made: list[DataFile] = []
    for rows in _cut(folded):
        numbers = numbers_of(rows)
        data = encode_bundle(rows, slices)
        path = create_datafile(store, itertools.islice(names, CREATE_TRIES_MAX), data)
        made += _entries(rows, numbers, slices, path, data.size)
    return made


def _cut(folded: Sequence[pa.Table]) -> Iterator[pa.Table]:
    """The rows of one bundle after the other, each sorted by slice."""
    numbers = [numbers_of(rows) for rows in folded]
    columns = len({name for rows in folded for name in rows.column_names})
    counts = np.bincount(np.concatenate([*numbers, np.empty(0, np.int64)]))
    size = max(1, sum(rows.nbytes for rows in folded))
    begin, room = 0, min(ROWS_MAX, CELLS_MAX // max(1, columns), BYTES_MAX * int(counts.sum()) // size)
    ends = np.cumsum(counts)
    while begin < len(counts):
        before = ends[begin] - counts[begin]
        end = max(begin + 1, int(np.searchsorted(ends, before + room, side="right")))
        places = [np.searchsorted(of, [begin, end]) for of in numbers]
        found = [rows.slice(low, high - low) for rows, (low, high) in zip(folded, places, strict=True) if high > low]
        if found:
            yield _sorted(found)
        begin = end


def _sorted(found: Sequence[pa.Table]) -> pa.Table:
    """The rows of all, sorted by slice, without columns that have no value (F19)."""
    rows = pa.concat_tables(found, promote_options="default")
    if len(found) > 1:
        rows = rows.take(pa.array(np.argsort(numbers_of(rows), kind="stable")))
    empty = [name for name in rows.column_names if rows.column(name).null_count == rows.num_rows]
    return rows.drop_columns(empty)


def encode_bundle(rows: pa.Table, slices: Sequence[SliceOf]) -> pa.Buffer:
    """The bytes of a bundle."""
    numbers = numbers_of(rows)
    tables = np.array([one.table.id for one in slices], np.int64)
    partitions = np.array([one.partition for one in slices], np.int32)
    columns = {TABLE_COLUMN: pa.array(tables[numbers]), PARTITION_COLUMN: pa.array(partitions[numbers])}
    columns |= {name: rows.column(name) for name in rows.column_names if name != SLICE_COLUMN}
    names = [*FIRST, *sorted(columns.keys() - {*FIRST, *LAST}), *(name for name in LAST if name in columns)]
    content = pa.table([columns[name] for name in names], names).combine_chunks()
    groups = max(1, min(GROUPS_MAX, CHUNKS_MAX // len(names)))
    sink = pa.BufferOutputStream()
    with _writer(content, sink) as writer:
        writer.write_table(content, row_group_size=max(GROUP_ROWS_MIN, -(-rows.num_rows // groups)))
    return sink.getvalue()


def _writer(content: pa.Table, sink: object) -> pq.ParquetWriter:
    """A tag of one table may be a field of another, so columns are encoded by their types alone."""
    dictionaries: list[str] = [OP_COLUMN] if OP_COLUMN in content.column_names else []
    encodings: dict[str, str] = {}
    fields = []
    for column in content.schema:
        if pa.types.is_string(column.type):
            dictionaries.append(column.name)
        elif column.name != OP_COLUMN and (pa.types.is_integer(column.type) or pa.types.is_timestamp(column.type)):
            encodings[column.name] = "DELTA_BINARY_PACKED"
        elif pa.types.is_floating(column.type):
            encodings[column.name] = "BYTE_STREAM_SPLIT"
        own = FIELD_IDS.get(column.name)
        fields.append(column if own is None else column.with_metadata({"PARQUET:field_id": str(own)}))
    return pq.ParquetWriter(
        sink,
        pa.schema(fields),
        compression="zstd",
        use_dictionary=dictionaries,
        column_encoding=encodings,
        store_schema=False,
        write_statistics=with_bounds(content),
        write_page_index=True,
        version="2.6",
    )


def _entries(rows: pa.Table, numbers: Ints, slices: Sequence[SliceOf], path: str, size: int) -> Iterable[DataFile]:
    """One entry for each slice; of the object's bytes each has its share by rows, and at least one."""
    found, starts, counts = np.unique(numbers, return_index=True, return_counts=True)
    times = rows.column(TIME_COLUMN).cast(pa.int64()).to_numpy()
    offsets = rows.column(OFFSET_COLUMN).to_numpy()
    has_ops = np.zeros(len(found), np.bool_)
    if OP_COLUMN in rows.column_names:
        ops = pc.fill_null(rows.column(OP_COLUMN), Op.PATCH.code).to_numpy()
        has_ops = np.logical_or.reduceat(ops != Op.PATCH.code, starts)
    shares = np.diff(np.concatenate([[0], np.cumsum(counts)]) * size // rows.num_rows)  # together they are all of it
    columns = zip(
        found.tolist(), counts.tolist(), np.maximum(1, shares).tolist(), np.minimum.reduceat(times, starts).tolist(),
        np.maximum.reduceat(times, starts).tolist(), np.maximum.reduceat(offsets, starts).tolist(), has_ops.tolist(),
        strict=True,
    )  # fmt: skip
    for number, count, share, time_low, time_high, offset_high, is_ops in columns:
        one = slices[number]
        (order_low, order_end), (offset_low, offset_end) = one.orders, one.offsets
        yield DataFile(
            path=path, table_id=one.table.id, partition=one.partition,
            order_low=order_low, order_high=offset_high if order_end is None else order_end,
            offset_low=offset_low, offset_high=offset_high if offset_end is None else offset_end,
            time_low=time_low, time_high=time_high, rows=count, bytes=share,
            schema_version=one.table.version, kind=BUNDLE_OPS if is_ops else BUNDLE,
        )  # fmt: skip
