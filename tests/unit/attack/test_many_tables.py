"""Time and queries that many tables once cost: each snapshot walked over all of them, beside writes that add some."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pyarrow as pa

from storage.entries import rows_entry
from storage.frames import Header, LogObject, ObjectKind
from storage.shardstate import PartitionKey, PartitionState, ShardState
from tests.harness.tables import make_rows, make_table

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES: Final = {n: make_table(n) for n in range(1, 4)}


class LookUpsOnly(dict[PartitionKey, PartitionState]):
    """Partitions that must not be walked over: a thread may ask while the event loop adds one."""

    def __iter__(self) -> Iterator[PartitionKey]:
        raise AssertionError("all tables are walked over for one")

    items = values = keys = __iter__  # type: ignore[assignment]


def test_a_snapshot_of_one_table_does_not_walk_over_all_tables() -> None:
    state = ShardState(b"s" * 16, 1, TABLES.get)
    for sequence, table in enumerate(TABLES.values(), start=2):
        rows = make_rows([sequence], ["a"])
        placed = state.place([rows_entry(table, 1, rows)])
        header = Header(ObjectKind.DATA, b"s" * 16, 1, sequence, 1, b"n" * 16, b"o" * 16, 0, 1, 1)
        state.apply(LogObject(header, placed, 1), [rows])
    state.partitions = LookUpsOnly(state.partitions)
    for sequence, table in enumerate(TABLES.values(), start=2):
        (part,) = state.snapshot(table)
        assert part.position == (1, 0, sequence)
        (batch,) = part.tail
        assert batch.rows.column("time").cast(pa.int64()).to_pylist() == [sequence]
    assert list(state.snapshot(make_table(9))) == []
