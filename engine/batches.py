"""DataFusion's stream, held so that it can be let go at once.

What stops a query is that nothing refers to its stream any more. Tracebacks refer to the local variables of each
frame, so no frame that can raise may hold the stream itself: all hold a `BatchSource`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from engine.session import is_panic, running_error

if TYPE_CHECKING:
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
