"""CREATE, REFRESH and DROP MATERIALIZED VIEW, for every Backend: the engine says what, here it is written.

A refresh writes the rows of some buckets of time and the view's new state at once, in one object of one Log (the view's
two tables share it), and only if the state has not been written since it was read (LOG L26). So however many refresh
a view at once, and wherever one of them dies, its rows are what its state says. `nodes.rowchanges` calls.
"""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from engine.changes import NewView, ViewProgress
from engine.errors import NotReadOnly, QueryMemoryExhausted
from engine.viewsql import quote
from engine.viewstatements import BUCKETS_FIRST, DropStatement, RefreshStatement, view_statement
from nodes.backend import Batch, CreateView, DropTable
from nodes.changedrows import gathered, stored
from nodes.insert import count_result, table_of
from storage.catalogplan import STATE_FIELD
from storage.errors import NoSuchTable, RequestTooLarge, RowsChanged
from storage.schema import OP_COLUMN, OP_TYPE, TIME_COLUMN, Op

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.changes import RowChange
    from nodes.backend import Backend, ChangeResult, Principal, QueryRequest
    from nodes.resulttext import ReadyResult
    from storage.schema import Table

FOLD_BYTES_MAX: Final = 16 * 2**20
"""Of the rows that one step of a refresh writes: they go into one object of a Log, with room to spare (FORMAT F15)."""
TOO_MANY: Final = (
    f"a bucket of the materialized view has rows of more than {FOLD_BYTES_MAX} bytes: "
    "make it of shorter buckets, or of fewer tags"
)
STEP_BYTES_FEW: Final = FOLD_BYTES_MAX // 32
"""After a step that wrote less the next one takes `STEP_FACTOR` times as many buckets: most may be empty, where a clock
was wrong by fifty years for example."""
STEP_FACTOR: Final = 8
BUCKETS_MAX: Final = 2**62
STEPS_MAX: Final = 100_000
TRIES_MAX: Final = 4
"""How often a step is taken while others write the view's state (L26)."""
STATE_TIME_NS: Final = 2**62
"""The time of a state's one row: no retention period ever comes to it."""
TIME_TYPE: Final = pa.timestamp("ns")


async def drop_if_asked(request: QueryRequest, backend: Backend, principal: Principal) -> ReadyResult | None:
    """Carry DROP MATERIALIZED VIEW out; None if the statement is another one. Answers how many views went."""
    asked = view_statement(request.text)
    if not isinstance(asked, DropStatement):
        return None
    if not request.may_write:
        raise NotReadOnly("DROP changes something, and this request may not: send it by POST")
    table = (await backend.refresh()).table(request.database, asked.name)
    if table is None or table.view is None:
        if asked.missing_ok and table is None:
            return count_result(0)
        raise NoSuchTable(f"there is no materialized view {asked.name!r}")
    await backend.alter([DropTable(request.database, asked.name)], principal)
    return count_result(1)


async def create_view(backend: Backend, database: str, rows: ChangeResult, principal: Principal) -> ReadyResult:
    """The view as the engine has understood it; it answers at once, whatever of it has been folded."""
    change = rows.change
    await rows.aclose()
    assert change is not None
    assert isinstance(change.view, NewView)
    new = change.view
    await backend.alter(
        [
            CreateView(
                database, change.table, new.table_id, new.text, new.width_ns, new.origin_ns, tuple(new.columns),
                new.exist_ok,
            )
        ],
        principal,
    )  # fmt: skip
    return count_result(0)


async def refresh_view(
    backend: Backend,
    request: QueryRequest,
    rows: ChangeResult,
    again: Callable[[QueryRequest], Awaitable[ChangeResult]],
    principal: Principal,
) -> ReadyResult:
    """Fold all that was out of date, some buckets at a time; how many rows were written.

    Raises RowsChanged if others refresh the view all the time, RequestTooLarge for a bucket with too many rows.
    """
    asked = view_statement(request.text)
    assert isinstance(asked, RefreshStatement)
    buckets, most, tries, written = asked.buckets_max or BUCKETS_FIRST, BUCKETS_MAX, 0, 0
    found: ChangeResult | None = rows
    for _ in range(STEPS_MAX):
        text = f"REFRESH MATERIALIZED VIEW {quote(asked.name)} LIMIT {buckets}"
        try:
            reading = found or await again(dataclasses.replace(request, text=text))
            found = None
            step, has_more = await _step(backend, request.database, reading, principal)
        except RowsChanged:
            tries += 1
            if tries >= TRIES_MAX:
                raise
        except (RequestTooLarge, QueryMemoryExhausted):
            if buckets == 1:
                raise
            buckets = most = max(1, buckets // STEP_FACTOR)
        else:
            tries, written = 0, written + step.num_rows
            if not has_more or asked.buckets_max is not None:
                break
            if step.nbytes < STEP_BYTES_FEW:
                buckets = min(most, buckets * STEP_FACTOR)
    return count_result(written)


async def _step(
    backend: Backend, database: str, rows: ChangeResult, principal: Principal
) -> tuple[pa.RecordBatch, bool]:
    """Write what one reading found. The rows, and whether more is left."""
    change = rows.change
    assert change is not None
    assert isinstance(change.view, ViewProgress)
    found = await gathered(rows, FOLD_BYTES_MAX, TOO_MANY)
    if not change.view.state:
        return found, change.view.has_more
    table = await table_of(backend, database, change)
    batches = [Batch(table, await asyncio.to_thread(stored, table, found))] if found.num_rows else []
    state = backend.catalog.tables_by_id[change.view.state_id]
    await backend.write([*batches, _state_batch(state, change)], principal)
    return found, change.view.has_more


def _state_batch(table: Table, change: RowChange) -> Batch:
    """The row that says how far the view is, if that has not been written since it was read."""
    assert isinstance(change.view, ViewProgress)
    (partition,) = table.partitions
    time = pa.array([STATE_TIME_NS], pa.int64()).cast(TIME_TYPE)
    ops = pa.array([Op.PUT.code], OP_TYPE)
    rows = pa.RecordBatch.from_arrays([time, pa.array([change.view.state]), ops], [TIME_COLUMN, STATE_FIELD, OP_COLUMN])
    return Batch(table, rows, unchanged_since={partition.id: change.positions.get(partition.id, 0)})
