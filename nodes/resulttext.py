"""A result as text, written in this process. The query engine, which has the writers, is loaded at the first."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from nodes.backend import QueryResult


def result_text(format: str, result: QueryResult) -> AsyncGenerator[bytes, None]:
    """The result in one of `engine.formats.ResultFormat`; closing it early closes the result."""
    from engine.formats import ResultFormat, encode

    return encode(ResultFormat(format), result)
