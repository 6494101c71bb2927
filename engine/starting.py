"""Starts a planned statement in this process. Driven by `engine.planner`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import stoppable
from engine.batches import BatchSource, PooledSource
from engine.session import is_panic, planning_error

if TYPE_CHECKING:
    from datafusion import DataFrame, SessionContext

    from engine.batches import Source


def started(
    context: SessionContext, frame: DataFrame, tails_bytes: int, pool: SessionContext | None, memory_max: int
) -> Source:
    """The frame's batches, made in this process, with the memory of ``pool`` if there is one. Raises EngineError,
    StorageError."""
    try:
        if pool is not None:
            return PooledSource(stoppable.execute_in(pool, context, frame, tails_bytes), memory_max)
        return BatchSource(stoppable.execute(context, frame, tails_bytes))
    except Exception as error:
        raise planning_error(error) from error
    except BaseException as error:
        if is_panic(error):
            raise planning_error(error) from error
        raise
