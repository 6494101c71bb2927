"""A statement that runs in stages: those before the last on workers, the last here, as a stream of batches.

Nothing is handed out before every task is done, so until then the stages can run again, on other workers or, when none
are left or a part of the plan cannot run alone, the statement whole in this process. `engine.stream` reads it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

from engine.ladder import TaskFailed, WorkersLost
from engine.tasks import with_names

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

    from engine.batches import BatchSource, Source
    from engine.ladder import Gathered, Workers
    from engine.stages import Stages
    from engine.tasks import TaskContext, TaskFigures

ATTEMPTS: Final = 3
"""How often the stages are run; afterwards the statement runs here."""

log = structlog.get_logger(__name__)


class StagedSource:
    """The batches of one statement, as `engine.batches.BatchSource` has them. ``local`` starts it whole; it blocks."""

    def __init__(
        self,
        stages: Stages,
        workers: Workers,
        context: TaskContext,
        schema: pa.Schema,
        local: Callable[[], Source],
        gather_bytes_max: int,
        began: Callable[[int], None] = lambda workers: None,
    ) -> None:
        """``began`` hears how many workers have tasks of it, each time its stages run."""
        self.figures: tuple[TaskFigures, ...] = ()
        self.fell_back = ""
        """Why it runs in this process after all; empty: it does not."""
        self._stages = stages
        self._workers = workers
        self._context = context
        self._schema = schema
        self._local: Callable[[], Source] | None = local
        self._gather_bytes_max = gather_bytes_max
        self._began = began
        self._source: Source | None = None
        self._is_dropped = False

    async def next(self) -> pa.RecordBatch | None:
        """The next batch; None at the end. Raises EngineError or StorageError."""
        if self._source is not None:
            batch = await self._source.next()
            return batch if batch is None or self.fell_back else self._named(batch)
        for _ in range(ATTEMPTS):
            try:
                return await self._first()
            except WorkersLost as error:
                self.fell_back = str(error)
            except Exception as error:  # noqa: BLE001 - whatever it was, whole and here the statement says it again
                self.fell_back = str(error)
                break
        log.info("a query runs here, not on workers", reason=self.fell_back)
        return await self._first_local()

    async def _first(self) -> pa.RecordBatch | None:
        """Run the stages and the last one up to its first batch."""
        gathered = await self._workers.run(self._stages, self._began)
        source = await asyncio.to_thread(self._start_last, gathered)
        batch = await source.next()
        shown = None if batch is None else self._named(batch)
        self._keep(source)
        self.figures = gathered.figures
        self.fell_back = ""
        return shown

    def _start_last(self, gathered: Gathered) -> BatchSource:
        if gathered.inputs.bytes > self._gather_bytes_max:
            raise TaskFailed(f"{gathered.inputs.bytes} bytes came back, more than a query's half of the memory here")
        try:
            return self._context.start(self._stages.last.plan, gathered.inputs)
        except Exception as error:
            raise TaskFailed(f"the last stage cannot run alone: {error}") from error

    async def _first_local(self) -> pa.RecordBatch | None:
        assert self._local is not None, "a source that was dropped is not read"
        source = await asyncio.to_thread(self._local)
        self._keep(source)
        return await source.next()

    def _keep(self, source: Source) -> None:
        if self._is_dropped:
            source.drop()
        self._source, self._local = source, None

    def _named(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """With the names that the statement gives: a UNION has those of its first part, which a task may not see."""
        try:
            return with_names(batch, self._schema)
        except ValueError as error:
            raise TaskFailed(f"the stages made other columns than the statement has: {error}") from error

    def drop(self) -> None:
        """Stop the query. Idempotent."""
        self._is_dropped = True
        self._local = None
        if self._source is not None:
            self._source.drop()
