"""DataFusion's stream, held so that it can be let go at once.

What stops a query is that nothing refers to its stream any more. Tracebacks refer to the local variables of each
frame, so no frame that can raise may hold the stream itself: all hold a `BatchSource`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from engine.errors import QueryMemoryExhausted, QueryTooLarge
from engine.session import is_panic, running_error

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa
    from datafusion.record_batch import RecordBatchStream


class Source(Protocol):
    """The batches of one running query, wherever they are made."""

    async def next(self) -> pa.RecordBatch | None:
        """The next batch; None at the end. Raises EngineError or StorageError."""
        ...

    def drop(self) -> None:
        """Stop the query. Idempotent."""
        ...


class BatchSource:
    """The batches of one running query."""

    def __init__(self, stream: RecordBatchStream) -> None:
        self._raw: Any = stream.rbs

    async def next(self) -> pa.RecordBatch | None:
        """The next batch; None at the end. Raises EngineError or StorageError."""
        try:
            batch = await self._raw.__anext__()
        except StopAsyncIteration:
            return None
        except Exception as error:
            raise running_error(error) from error
        except BaseException as error:
            if is_panic(error):
                raise running_error(error) from error
            raise
        return batch.to_pyarrow()

    def drop(self) -> None:
        """Stop the query. Idempotent."""
        self._raw = None


class PooledSource:
    """The batches of a query that has memory of its own, from all its partitions, as they come."""

    def __init__(self, streams: Sequence[RecordBatchStream], memory_max: int) -> None:
        self._sources = [BatchSource(stream) for stream in streams]
        self._memory_max = memory_max
        self._pending: dict[asyncio.Task[pa.RecordBatch | None], BatchSource] = {}

    async def next(self) -> pa.RecordBatch | None:
        """The next batch; None at the end. Raises EngineError or StorageError; QueryTooLarge over its memory."""
        while True:
            for source in self._sources:
                self._pending[asyncio.ensure_future(source.next())] = source
            self._sources = []
            if not self._pending:
                return None
            done, _ = await asyncio.wait(self._pending, return_when=asyncio.FIRST_COMPLETED)
            batch = self._taken(next(iter(done)))
            if batch is not None:
                return batch

    def drop(self) -> None:
        """Stop the query. Idempotent."""
        pending, self._pending = self._pending, {}
        for task, source in pending.items():
            source.drop()
            task.add_done_callback(_heard)
            task.cancel()
        for source in self._sources:
            source.drop()
        self._sources = []

    def _taken(self, task: asyncio.Task[pa.RecordBatch | None]) -> pa.RecordBatch | None:
        """What one partition made; it goes on when the next batch is asked for."""
        source = self._pending.pop(task)
        try:
            batch = task.result()
        except QueryMemoryExhausted as error:
            limit = f"{self._memory_max} bytes (query.memory_max)"
            text = str(error).partition(": ")[2]
            raise QueryTooLarge(f"the query needs more memory than one query may have, {limit}: {text}") from error
        if batch is not None:
            self._sources.append(source)
        return batch


def _heard(task: asyncio.Task[pa.RecordBatch | None]) -> None:
    """Nobody waits for a dropped partition's error."""
    if not task.cancelled():
        task.exception()
