"""Slices of bundles as rows: for merging, without DataFusion (FORMAT F18). Blocking.

`storage.bundlemerge` reads bundles; `storage.merge` reads a slice as if it were a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from storage.columnbounds import with_bounds
from storage.errors import CorruptObject, ObjectMissing
from storage.schema import PARTITION_COLUMN, TABLE_COLUMN

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from storage.objects import ObjectStore
    from storage.schema import DataFile

    Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Read:
    """Rows of some slices of a bundle, by storage names: slice ``i`` has ``counts[i]`` from ``starts[i]`` on."""

    rows: pa.Table
    starts: Ints
    counts: Ints

    def numbers(self) -> Ints:
        """Which slice each row is of."""
        return np.repeat(np.arange(len(self.counts)), self.counts)


def read_slices(store: ObjectStore, slices: Sequence[DataFile]) -> Read:
    """These slices of one bundle, sorted by table and partition; row groups without any of their rows are not decoded.

    Raises ObjectMissing, and CorruptObject if one has not as many rows as it must have.
    """
    path = slices[0].path
    try:
        file = _opened(store, path)
        tables = np.array([one.table_id for one in slices], np.int64)
        rows = file.read_row_groups(list(_groups(file, tables)), use_threads=False).combine_chunks()
        ids, partitions = (rows.column(name).to_numpy() for name in (TABLE_COLUMN, PARTITION_COLUMN))
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise CorruptObject(f"{path}: {error}") from error
    places, wanted = _codes(ids, partitions), _codes(tables, np.array([one.partition for one in slices]))
    starts, ends = (np.searchsorted(places, wanted, side=side) for side in ("left", "right"))
    for one, count in zip(slices, (ends - starts).tolist(), strict=True):
        if count != one.rows:
            raise CorruptObject(f"{path}: {count} rows of table {one.table_id} where its entry says {one.rows}")
    rows = rows.drop_columns([TABLE_COLUMN, PARTITION_COLUMN])
    if int((ends - starts).sum()) < rows.num_rows:
        marks = np.zeros(rows.num_rows + 1, np.int64)
        np.add.at(marks, starts, 1)
        np.add.at(marks, ends, -1)
        rows = rows.filter(pa.array(np.cumsum(marks[:-1]) > 0))
    counts = ends - starts
    return Read(rows, np.cumsum(counts) - counts, counts)


def slice_as_file(store: ObjectStore, file: DataFile) -> pa.Buffer:
    """A slice as the Parquet file that it would be by itself: it has few rows."""
    rows = read_slices(store, [file]).rows
    empty = [name for name in rows.column_names if rows.column(name).null_count == rows.num_rows]
    sink = pa.BufferOutputStream()
    kept = rows.drop_columns(empty)
    pq.write_table(kept, sink, store_schema=False, version="2.6", write_statistics=with_bounds(kept))
    return sink.getvalue()


def _opened(store: ObjectStore, path: str) -> pq.ParquetFile:
    """Mapped from a local disk, else fetched whole: what entries say of bytes is a share."""
    local = store.local_path(path)
    if local is None:
        return pq.ParquetFile(pa.BufferReader(store.get(path)))
    try:
        return pq.ParquetFile(pa.memory_map(str(local)))
    except FileNotFoundError:
        raise ObjectMissing(f"{path}: not in the store") from None


def _codes(tables: Ints, partitions: Ints) -> Ints:
    """One number for each table and partition, in the order of a bundle's rows: ids of partitions have 32 bits."""
    return (tables.astype(np.int64) << 32) | partitions.astype(np.int64)


def _groups(file: pq.ParquetFile, tables: Ints) -> Iterator[int]:
    """The row groups in which one of ``tables``, which are sorted, may be."""
    place = file.schema_arrow.names.index(TABLE_COLUMN)
    for group in range(file.metadata.num_row_groups):
        found = file.metadata.row_group(group).column(place).statistics
        is_known = found is not None and found.has_min_max
        if not is_known or np.searchsorted(tables, found.min) < np.searchsorted(tables, found.max, side="right"):
            yield group
