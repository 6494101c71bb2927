"""REFRESH MATERIALIZED VIEW in steps: how many buckets each takes, and who else wrote the state meanwhile (LOG L26)."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pytest

from engine.changes import ChangeKind, RowChange, ViewProgress
from engine.errors import QueryMemoryExhausted
from engine.viewstatements import BUCKETS_FIRST, RefreshStatement, view_statement
from nodes.backend import Batch, Principal, QueryRequest
from nodes.views import STEP_FACTOR, TRIES_MAX, refresh_view
from storage.errors import RequestTooLarge, RowsChanged, StorageError
from storage.schema import OP_COLUMN, OP_TYPE, Partition
from tests.harness.tables import make_table

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from nodes.backend import Backend

VIEW = dataclasses.replace(make_table(), id=2, name="v", partitions=(Partition(5, 0, 2**64, 11),))
STATE = dataclasses.replace(make_table(), id=3, partitions=(Partition(6, 0, 2**64, 11),))
POSITION = 77


class Step:
    """The rows of one reading, as the engine gives them."""

    def __init__(self, rows: int, has_more: bool, state: str = "{}") -> None:
        times = pa.array(range(rows), pa.int64()).cast(pa.timestamp("ns"))
        names, arrays = ["time", "host", "i", OP_COLUMN], [times, pa.array(["a"] * rows, pa.string_view())]
        arrays += [pa.array([1] * rows, pa.int64()), pa.array([1] * rows, OP_TYPE)]
        self.batch = pa.RecordBatch.from_arrays(arrays, names)
        self.schema = self.batch.schema
        self.change = RowChange(
            ChangeKind.REFRESH_VIEW, "v", VIEW.id, {6: POSITION}, view=ViewProgress(STATE.id, state, has_more)
        )

    async def __aiter__(self) -> AsyncIterator[pa.RecordBatch]:
        if self.batch.num_rows:
            yield self.batch

    async def aclose(self) -> None:
        pass


class Owner:
    """A Backend of one shard, which raises each of ``errors`` once, and says what each step took."""

    def __init__(self, reading: Callable[[int], Step], errors: Sequence[StorageError] = ()) -> None:
        self.errors = list(errors)
        self.limits: list[int] = []
        self.written: list[Sequence[Batch]] = []
        self.catalog = self
        self.tables_by_id = {VIEW.id: VIEW, STATE.id: STATE}
        self._reading = reading

    def table(self, database: str, name: str) -> Any:
        return VIEW

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.written.append(batches)

    async def again(self, request: QueryRequest) -> Step:
        asked = view_statement(request.text)
        assert isinstance(asked, RefreshStatement)
        assert asked.buckets_max is not None
        self.limits.append(asked.buckets_max)
        return self._reading(asked.buckets_max)

    def refresh(self, first: Step, text: str = "REFRESH MATERIALIZED VIEW v") -> int:
        async def work() -> int:
            request = QueryRequest("db", text, may_write=True)
            run = cast("Any", self.again)
            done = await refresh_view(cast("Backend", self), request, cast("Any", first), run, Principal("t"))
            return sum([sum(batch.column(0).to_pylist()) async for batch in done])

        return asyncio.run(work())


def test_rows_and_state_are_one_write_that_rests_on_the_state() -> None:
    owner = Owner(lambda _: Step(0, has_more=False, state=""))
    assert owner.refresh(Step(3, has_more=False)) == 3
    (batches,) = owner.written
    assert [batch.table.id for batch in batches] == [VIEW.id, STATE.id]
    assert [batch.unchanged_since for batch in batches] == [None, {6: POSITION}]


def test_after_steps_that_write_little_the_next_takes_more_buckets() -> None:
    """One row of a clock that was wrong by fifty years must not make millions of steps of empty buckets."""
    left = iter([True, True, True, False])
    owner = Owner(lambda _: Step(1, has_more=next(left)))
    assert owner.refresh(Step(1, has_more=True)) == 5
    assert owner.limits == [BUCKETS_FIRST * STEP_FACTOR**n for n in (1, 2, 3, 4)]


def test_a_step_that_is_too_large_is_taken_smaller_and_none_is_larger_again() -> None:
    def reading(buckets: int) -> Step:
        if buckets > BUCKETS_FIRST:
            raise QueryMemoryExhausted("too many groups")
        return Step(1, has_more=len(owner.limits) < 4)

    owner = Owner(reading)
    assert owner.refresh(Step(1, has_more=True)) == 4
    assert owner.limits == [BUCKETS_FIRST * STEP_FACTOR, *[BUCKETS_FIRST] * 3]
    owner = Owner(lambda _: Step(1, has_more=False), [RequestTooLarge("too large")])
    owner.refresh(Step(1, has_more=True))
    assert owner.limits == [BUCKETS_FIRST // STEP_FACTOR]
    owner = Owner(lambda _: Step(1, has_more=False), [RequestTooLarge("too large")] * 2)
    with pytest.raises(RequestTooLarge):
        owner.refresh(Step(1, has_more=True))


def test_a_step_is_taken_again_when_others_wrote_the_state() -> None:
    owner = Owner(lambda _: Step(2, has_more=False), [RowsChanged("x")] * (TRIES_MAX - 1))
    assert owner.refresh(Step(2, has_more=False)) == 2
    owner = Owner(lambda _: Step(2, has_more=False), [RowsChanged("x")] * TRIES_MAX)
    with pytest.raises(RowsChanged):
        owner.refresh(Step(2, has_more=False))
    assert owner.written == []


def test_a_limited_refresh_is_one_step() -> None:
    owner = Owner(lambda _: Step(1, has_more=True))
    assert owner.refresh(Step(1, has_more=True), "REFRESH MATERIALIZED VIEW v LIMIT 5") == 1
    assert owner.limits == []
