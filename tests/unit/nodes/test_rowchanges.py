"""DELETE and UPDATE as puts and deletes of keys: shards whose rows were written meanwhile are read again (LOG L26)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pytest

from engine.changes import ChangeKind, RowChange
from nodes import rowchanges
from nodes.backend import Batch, Principal, QueryRequest
from nodes.rowchanges import READS_MAX, carry_out
from storage.deletes import RangeDelete, TagValues
from storage.errors import NoSuchTable, OutcomeUnknown, RequestTooLarge, RowsChanged, StorageError
from storage.keys import canonical_key, key_hash
from storage.schema import OP_COLUMN, Op, Partition
from tests.harness.gateway import on_loop
from tests.harness.tables import make_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from nodes.backend import Backend
    from storage.schema import Table

HALF = 2**63
MADE = make_table(partitions=2)
TABLE = dataclasses.replace(MADE, partitions=(Partition(1, 0, HALF, 11), Partition(2, HALF, 2**64, 12)))
SINCE = {1: 100, 2: 200}
HOSTS = [f"h{n}" for n in range(20)]


class Found:
    """A statement's rows."""

    def __init__(self, kind: ChangeKind, *batches: pa.RecordBatch, table: Table = TABLE, at: int = 0) -> None:
        self.batches = batches
        self.schema = batches[0].schema
        self.change = RowChange(kind, table.name, table.id, {k: v + at for k, v in SINCE.items()})
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[pa.RecordBatch]:
        for batch in self.batches:
            yield batch

    async def aclose(self) -> None:
        self.is_closed = True


class Owners:
    """A Backend of two shards, which refuse as often as ``errors`` says; keeps what they take."""

    def __init__(self, errors: dict[int, list[StorageError]] | None = None) -> None:
        self.errors = errors or {}
        self.taken: list[tuple[int, Batch]] = []
        self.asked: list[int] = []
        self.catalog = self

    def table(self, database: str, name: str) -> Any:
        return TABLE if name == TABLE.name else None

    async def refresh(self) -> Owners:
        return self

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        (batch,) = batches
        logs = {shard_of(host) for host in batch.rows.column("host").to_pylist()}
        assert len(logs) == 1, "one shard takes all of its part or nothing"
        (log_id,) = logs
        self.asked.append(log_id)
        if self.errors.get(log_id):
            raise self.errors[log_id].pop(0)
        self.taken.append((log_id, batch))


def shard_of(host: str) -> int:
    return 11 if key_hash(canonical_key([(2, host)])) < HALF else 12


def keys(hosts: Sequence[str] = HOSTS, time: int = 5) -> pa.RecordBatch:
    """As the engine hands a DELETE's rows out."""
    return pa.RecordBatch.from_pydict(
        {
            "host": pa.array(hosts, pa.string_view()),
            "région": pa.array([None] * len(hosts), pa.string_view()),
            "time": pa.array([time] * len(hosts), pa.timestamp("ns")),
        }
    )


def changed() -> RowsChanged:
    return RowsChanged("written again")


async def carried_out(owners: Owners, *readings: Found) -> int:
    """Run it over these readings, of which no more may be asked for."""
    left = list(readings[1:])

    async def again(_: QueryRequest) -> Found:
        return left.pop(0)

    result = await carry_out(cast("Backend", owners), QueryRequest("db", ""), readings[0], again, Principal())
    assert not left
    assert all(reading.is_closed for reading in readings)
    (batch,) = [batch async for batch in result]
    count: int = batch.column(0)[0].as_py()
    return count


@on_loop
async def test_a_delete_is_the_keys_with_their_op_at_the_snapshot() -> None:
    owners = Owners()
    assert await carried_out(owners, Found(ChangeKind.DELETE, keys(HOSTS[:9]), keys(HOSTS[9:]))) == 20
    assert sorted(log for log, _ in owners.taken) == [11, 12]
    for log_id, batch in owners.taken:
        assert batch.rows.schema.names == ["host", "time", OP_COLUMN]
        assert set(batch.rows.column(OP_COLUMN).to_pylist()) == {Op.DELETE.code}
        assert batch.rows.column("host").to_pylist() == [h for h in HOSTS if shard_of(h) == log_id]
        assert batch.unchanged_since == SINCE


@on_loop
async def test_an_update_is_whole_rows_also_of_nothing_but_null() -> None:
    owners = Owners()
    rows = keys().append_column("i", pa.array([None, *range(19)], pa.int64()))
    rows = rows.append_column("s", pa.array([None] * 20, pa.string_view()))
    assert await carried_out(owners, Found(ChangeKind.UPDATE, rows)) == 20
    for _, batch in owners.taken:
        assert set(batch.rows.column(OP_COLUMN).to_pylist()) == {Op.PUT.code}
        assert batch.rows.schema.names == ["host", "time", "i", OP_COLUMN]


@on_loop
async def test_l30_a_range_delete_names_a_version_that_has_its_tags() -> None:
    """The node that planned it may know a tag that the gateway has not heard of."""
    older = dataclasses.replace(TABLE, version=TABLE.version - 1, columns=TABLE.columns[:-1])
    newest = TABLE.columns[-1]

    class Behind(Owners):
        def table(self, database: str, name: str) -> Any:
            return older

        async def refresh(self) -> Owners:
            return Owners()

        async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
            self.taken += [(0, batch) for batch in batches]

    owners, delete = Behind(), RangeDelete(tags=(TagValues(newest.id, ("x",)),))
    found = Found(ChangeKind.DELETE, pa.RecordBatch.from_pydict({"count": pa.array([3], pa.int64())}))
    found.change = dataclasses.replace(found.change, delete=delete)
    assert await carried_out(owners, found) == 3
    ((_, batch),) = owners.taken
    assert (batch.table, batch.delete) == (TABLE, delete)


@on_loop
async def test_nothing_found_is_nothing_written() -> None:
    owners = Owners()
    assert await carried_out(owners, Found(ChangeKind.DELETE, keys([]))) == 0
    assert owners.asked == []


@on_loop
async def test_l26_only_the_shard_whose_rows_were_written_is_read_again() -> None:
    owners = Owners({12: [changed(), changed()]})
    readings = [Found(ChangeKind.UPDATE, keys(), at=n) for n in range(3)]
    assert await carried_out(owners, *readings) == 20
    assert owners.asked == [11, 12, 12, 12]
    assert [batch.unchanged_since for _, batch in owners.taken] == [SINCE, {1: 102, 2: 202}]


@on_loop
async def test_l26_after_three_more_readings_it_says_try_again_and_how_much_stands() -> None:
    owners = Owners({12: [changed() for _ in range(READS_MAX)]})
    readings = [Found(ChangeKind.UPDATE, keys()) for _ in range(READS_MAX)]
    with pytest.raises(
        RowsChanged, match=r"written again \(\d+ rows, of other shards, were changed before\)"
    ) as caught:
        await carried_out(owners, *readings)
    assert caught.value.retriable
    assert owners.asked.count(11) == 1
    assert owners.asked.count(12) == READS_MAX


@on_loop
async def test_what_may_stand_is_not_tried_again() -> None:
    owners = Owners({11: [changed()], 12: [OutcomeUnknown("may stand")]})
    with pytest.raises(OutcomeUnknown):
        await carried_out(owners, Found(ChangeKind.DELETE, keys()))
    assert sorted(owners.asked) == [11, 12]


@on_loop
async def test_a_later_table_of_the_same_name_is_another_one() -> None:
    before = dataclasses.replace(TABLE, id=99)
    owners = Owners()
    with pytest.raises(NoSuchTable):
        await carried_out(owners, Found(ChangeKind.DELETE, keys(), table=before))
    assert owners.asked == []


@on_loop
async def test_more_than_one_statement_may_change_is_refused_before_anything_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owners = Owners()
    monkeypatch.setattr(rowchanges, "SHARD_BYTES_MAX", 100)
    with pytest.raises(RequestTooLarge, match="nothing was written"):
        await carried_out(owners, Found(ChangeKind.DELETE, keys()))
    monkeypatch.setattr(rowchanges, "CHANGE_BYTES_MAX", 100)
    found = Found(ChangeKind.DELETE, keys())
    with pytest.raises(RequestTooLarge, match="the rows that the statement changes are more"):
        await carried_out(owners, found)
    assert found.is_closed
    assert owners.asked == []
