"""A running query, as the doors read it. Dropping DataFusion's stream is what cancels a query.

What DataFusion 55 really stops: scans, filters, aggregates, sorts, windows and generated series at once, joins through
`engine.stoppable`. A join that finds no row to hand on still looks up only between the batches of its input; others
go on, as there are more threads than cores.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from engine.errors import EngineError, QueryCancelled, QueryTimeout
from engine.running import DONE, Phase
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.batches import Source
    from engine.changes import RowChange
    from engine.running import RunningQuery


class QueryStream:
    """An async iterator over a query's batches, once. ``schema`` is known before the first, and so is ``change``, what
    the rows of a statement that writes are for; to write them is the caller's.

    Raises QueryTimeout when the time limit passes, also while the reader dawdles; QueryMemoryExhausted,
    QueryFailed or a StorageError when the query fails; QueryKilled. Its place is given back when it ends in any way.
    """

    def __init__(
        self,
        schema: pa.Schema,
        source: Source,
        deadline: float,
        query: RunningQuery,
        finished: Callable[[], None],
        change: RowChange | None = None,
    ) -> None:
        self.schema = schema
        self.change = change
        self._source = source
        self._query = query
        self._owns_query = False
        self._finished: Callable[[], None] | None = finished
        self._first: pa.RecordBatch | None = None
        self._failure: EngineError | StorageError | None = None
        self._pending: asyncio.Future[pa.RecordBatch | None] | None = None
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(deadline, self.stop, QueryTimeout("the query ran longer than its time limit"))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> pa.RecordBatch:
        first, self._first = self._first, None
        if first is not None:
            return first
        if self._failure is not None:
            raise self._failure
        if self._finished is None:
            raise StopAsyncIteration
        return await self._next()

    async def aclose(self) -> None:
        """Cancel what is left of the query. Idempotent."""
        self.stop(QueryCancelled("the result was closed"))

    async def fetch_first(self) -> None:
        """Run up to the first batch, so that what fails at once fails before anything is sent."""
        try:
            self._first = first = await anext(self)
        except StopAsyncIteration:
            return
        # DataFusion's planner says of a UNION the types of its first part; the rows have those that fit all parts.
        if first.schema.types != self.schema.types:
            self.schema = with_types(self.schema, first.schema)

    def take_over(self) -> None:
        """The reader has this stream now, so that the query ends with it, or is killed through it."""
        self._owns_query = True
        self._query.stop_by(lambda: self.stop(self._query.killed()))
        if self._finished is None:
            self._query.end(self.outcome)

    @property
    def outcome(self) -> str:
        """Of a query that has ended: an error's code, or `running.DONE`."""
        return DONE if self._failure is None else self._failure.code

    def stop(self, reason: EngineError | StorageError) -> None:
        """Drop the query; whoever reads on gets `reason`. Idempotent."""
        if self._finished is None:
            return
        self._failure = reason
        self._first = None
        pending = self._pending
        self._end()
        if pending is not None:
            pending.cancel()

    async def _next(self) -> pa.RecordBatch:
        self._query.enter(Phase.RUNNING)
        self._pending = asyncio.ensure_future(self._source.next())
        try:
            batch = await self._pending
        except asyncio.CancelledError:
            if self._failure is not None:
                raise self._failure from None
            self.stop(QueryCancelled("the reader was cancelled"))
            raise
        except (EngineError, StorageError) as error:
            self._failure = error
            self._end()
            raise
        self._pending = None
        if batch is None:
            self._end()
            raise StopAsyncIteration
        self._query.hands_out(batch.num_rows, pa.ipc.get_record_batch_size(batch))  # nbytes takes 10 times as long
        return batch

    def _end(self) -> None:
        self._timer.cancel()
        self._source.drop()
        self._pending = None
        finished, self._finished = self._finished, None
        if finished is not None:
            finished()
        if self._owns_query:
            self._query.end(self.outcome)


def with_types(schema: pa.Schema, rows: pa.Schema) -> pa.Schema:
    """A statement's schema with the types that its rows have."""
    return pa.schema([field.with_type(found.type) for field, found in zip(schema, rows, strict=True)], schema.metadata)
