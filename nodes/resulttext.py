"""Results that no engine streams: rows that are here already, and text that is written in this process.

The query engine, which has the writers, is loaded at the first text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    import pyarrow as pa

    from nodes.backend import QueryResult


class ReadyResult:
    """A result that is here already (`nodes.backend.QueryResult`)."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._rows = rows

    @property
    def schema(self) -> pa.Schema:
        return self._rows.schema

    async def __aiter__(self) -> AsyncIterator[pa.RecordBatch]:
        yield self._rows

    async def aclose(self) -> None:
        """Nothing runs."""


def result_text(format: str, result: QueryResult) -> AsyncGenerator[bytes, None]:
    """The result in one of `engine.formats.ResultFormat`; closing it early closes the result."""
    from engine.formats import ResultFormat, encode

    return encode(ResultFormat(format), result)
