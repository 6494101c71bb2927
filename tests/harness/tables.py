"""Tables and rows for tests of storage: one table with every type, and batches of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from storage.datafile import write_datafile
from storage.schema import Column, Partition, Role, Table, TypeKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from storage.objects import ObjectStore
    from storage.schema import DataFile, TailBatch

HASH_END = 2**64


def make_table(table_id: int = 1, partitions: int = 1, log_id: int = 1, version: int = 1) -> Table:
    """A table with two tags and a field of each type, its hash range cut into equal ``partitions``."""
    columns = (
        Column(1, "time", "time", Role.TIME, TypeKind.TIMESTAMP),
        Column(2, "host", "host", Role.TAG, TypeKind.STRING),
        Column(3, "région", "r_gion_3", Role.TAG, TypeKind.STRING),
        Column(4, "f", "f", Role.FIELD, TypeKind.FLOAT64),
        Column(5, "i", "i", Role.FIELD, TypeKind.INT64),
        Column(6, "u", "u", Role.FIELD, TypeKind.UINT64),
        Column(7, "s", "s", Role.FIELD, TypeKind.STRING),
        Column(8, "b", "b", Role.FIELD, TypeKind.BOOL),
    )
    bounds = [HASH_END * i // partitions for i in range(partitions + 1)]
    ranges = tuple(Partition(i + 1, bounds[i], bounds[i + 1], log_id) for i in range(partitions))
    return Table(table_id, f"00000000-0000-4000-8000-{table_id:012d}", 1, f"cpu{table_id}", version, columns, ranges)


def make_rows(times: Sequence[int], hosts: Sequence[str | None], first: int = 0) -> pa.RecordBatch:
    """Rows of `make_table`; the fields follow from ``first`` and the row's number."""
    numbers = range(first, first + len(times))
    return pa.RecordBatch.from_pydict(
        {
            "time": pa.array(times, pa.timestamp("ns")),
            "host": pa.array(hosts, pa.string()).dictionary_encode(),
            "f": pa.array([n / 4 for n in numbers], pa.float64()),
            "i": pa.array([-n if n % 3 else None for n in numbers], pa.int64()),
            "u": pa.array([2**64 - 1 - n for n in numbers], pa.uint64()),
            "s": pa.array([f"s{n}" for n in numbers], pa.string()),
            "b": pa.array([n % 2 == 0 for n in numbers], pa.bool_()),
        }
    )


def write_file(
    store: ObjectStore, table: Table, log_id: int, epoch: int, partition: int, tail: Sequence[TailBatch]
) -> DataFile:
    """`write_datafile` of a tail that has rows."""
    file = write_datafile(store, table, log_id, epoch, partition, tail)
    assert file is not None
    return file
