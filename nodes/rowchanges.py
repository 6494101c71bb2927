"""UPDATE and DELETE: rows that a statement has found at a snapshot become puts and deletes of their keys (LOG L26).

The engine says which rows, and on which objects of the Logs they rest; here they are sent to the owners, which take
them only if none of the keys has been written since. Else the statement is run again, for the shards that are left.
Atomic per shard (L17). Driven by every Backend; `nodes.insert` does INSERT.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from cluster.errors import ClusterError
from engine.changes import ChangeKind
from engine.errors import EngineError
from nodes.backend import Batch
from nodes.changedrows import gathered, stored
from nodes.insert import count_result, insert, table_of
from nodes.outcomes import worst
from nodes.views import create_view, refresh_view
from storage.errors import RequestTooLarge, RowsChanged, StorageError
from storage.keys import route
from storage.schema import NO_ROWS, OP_COLUMN, OP_TYPE, Op

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.changes import RowChange
    from nodes.backend import Backend, ChangeResult, Principal, QueryRequest
    from nodes.resulttext import ReadyResult
    from storage.deletes import RangeDelete
    from storage.schema import Table

READS_MAX: Final = 4
"""How often the rows are read: once, and three times more when some were written in between (L26)."""
CHANGE_BYTES_MAX: Final = 128 * 2**20
"""Of all rows that one statement changes, as they are held here."""
SHARD_BYTES_MAX: Final = 32 * 2**20
"""Of those of one shard: they go into one object of its Log (FORMAT F15)."""
TOO_MANY: Final = (
    f"the rows that the statement changes are more than {CHANGE_BYTES_MAX} bytes, and nothing was "
    "written: change fewer at once, by a range of time for example"
)
OPS: Final = {ChangeKind.DELETE: Op.DELETE, ChangeKind.UPDATE: Op.PUT}


@dataclass
class _Progress:
    """Rows that are changed, and the shards that still wait; None: all of them."""

    rows: int = 0
    waiting: frozenset[int] | None = None


async def carry_out(
    backend: Backend,
    request: QueryRequest,
    rows: ChangeResult,
    run: Callable[[QueryRequest], Awaitable[ChangeResult]],
    principal: Principal,
) -> ReadyResult:
    """Write what the ``rows`` of a statement are for; close them. Answers how many rows there were.

    ``run`` runs a statement anew. Raises what the statement or a write raises, RowsChanged if others wrote the
    same rows all the time, RequestTooLarge; the error says how many rows had been changed.
    """
    change = rows.change
    assert change is not None, "the rows of a statement that writes"
    database = request.database
    if change.kind is ChangeKind.INSERT:
        return await insert(backend, database, change, rows, principal)
    if change.kind is ChangeKind.CREATE_VIEW:
        return await create_view(backend, database, rows, principal)
    if change.kind is ChangeKind.REFRESH_VIEW:
        return await refresh_view(backend, request, rows, run, principal)
    if change.delete is not None:
        return await _delete_range(backend, database, rows, change.delete, principal)
    progress = _Progress()
    for attempt in range(READS_MAX):
        found = rows if attempt == 0 else await run(request)
        try:
            await _change(backend, database, found, principal, progress)
            return count_result(progress.rows)
        except (EngineError, StorageError, ClusterError) as error:
            if isinstance(error, RowsChanged) and attempt + 1 < READS_MAX:
                continue
            if progress.rows:
                error.args = (f"{error} ({progress.rows} rows, of other shards, were changed before)",)
            raise
    raise AssertionError("the last attempt returns or raises")


async def _delete_range(
    backend: Backend, database: str, rows: ChangeResult, delete: RangeDelete, principal: Principal
) -> ReadyResult:
    """A DELETE by tags and time is stored as it was written (L26); it also takes what was written since the count."""
    change = rows.change
    assert change is not None
    (count,) = (await gathered(rows, CHANGE_BYTES_MAX, TOO_MANY)).column(0).to_pylist()
    if count:
        table = await table_of(backend, database, change)
        await backend.write([Batch(table, NO_ROWS, delete=delete)], principal)
    return count_result(count)


async def _change(
    backend: Backend, database: str, rows: ChangeResult, principal: Principal, progress: _Progress
) -> None:
    """One reading of the rows, and their writes. Raises RowsChanged if some shards are to be read again."""
    change = rows.change
    assert change is not None
    found = await gathered(rows, CHANGE_BYTES_MAX, TOO_MANY)
    table = await table_of(backend, database, change, found.schema)
    parts = await asyncio.to_thread(_split, table, found, change)
    waiting = {log_id: part for log_id, part in parts.items() if progress.waiting is None or log_id in progress.waiting}
    writes = [backend.write([part], principal) for part in waiting.values()]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    errors = {log: o for log, o in zip(waiting, outcomes, strict=True) if isinstance(o, BaseException)}
    progress.rows += sum(part.rows.num_rows for log, part in waiting.items() if log not in errors)
    progress.waiting = frozenset(log for log, error in errors.items() if isinstance(error, RowsChanged))
    others = [error for error in errors.values() if not isinstance(error, RowsChanged)]
    if errors:
        raise worst(others or list(errors.values()))


def _split(table: Table, rows: pa.RecordBatch, change: RowChange) -> dict[int, Batch]:
    """By Log, since one shard takes all of its part or nothing. Raises RequestTooLarge before anything is sent."""
    by_log: defaultdict[int, list[pa.RecordBatch]] = defaultdict(list)
    if not rows.num_rows:
        return {}
    for partition, part in route(table, _with_op(table, rows, OPS[change.kind])):
        assert partition.id in change.positions, "rows come from partitions that the snapshot had"
        by_log[partition.log_id].append(part)
    batches = {log_id: pa.concat_batches(parts) for log_id, parts in by_log.items()}
    for log_id, batch in batches.items():
        if batch.nbytes > SHARD_BYTES_MAX:
            raise RequestTooLarge(
                f"the statement changes {batch.num_rows} rows of shard {log_id}, {batch.nbytes} bytes, and nothing was "
                f"written: at most {SHARD_BYTES_MAX} bytes at once; change fewer, by a range of time for example"
            )
    return {log_id: Batch(table, batch, unchanged_since=change.positions) for log_id, batch in batches.items()}


def _with_op(table: Table, rows: pa.RecordBatch, op: Op) -> pa.RecordBatch:
    """As it is stored, with the op of every row."""
    ops = pa.array(np.full(rows.num_rows, op.code, np.int8), OP_TYPE)
    return stored(table, rows.append_column(OP_COLUMN, ops))
