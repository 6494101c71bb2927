"""The one family of errors that the engine raises; the doors map ``code`` to their own status words.

``retriable`` says whether the same statement may succeed later without a change.
"""

from __future__ import annotations

from typing import ClassVar


class EngineError(Exception):
    """Root of everything that the engine raises on purpose. The message says what, where and what to do."""

    code: ClassVar[str] = "engine"
    retriable: ClassVar[bool] = False


class InvalidStatement(EngineError):
    """The statement cannot be parsed or planned (400)."""

    code = "invalid_statement"


class NotReadOnly(EngineError):
    """The statement would change something; only reading statements are served (400)."""

    code = "not_read_only"


class NotSupported(EngineError):
    """SQL that is valid but that this engine does not implement (405)."""

    code = "not_supported"


class UnknownTable(EngineError):
    """No table of this name is in the database (400)."""

    code = "unknown_table"


class AmbiguousName(EngineError):
    """An unquoted name matches several names that differ in case only; the message lists them (400)."""

    code = "ambiguous_name"


class InvalidParameter(EngineError):
    """A parameter's value is not an int, float, str, bool or None (400)."""

    code = "invalid_parameter"


class QueryTimeout(EngineError):
    """The time limit passed before the result was complete (504)."""

    code = "query_timeout"


class QueryMemoryExhausted(EngineError):
    """The query wanted more memory than the engine's pool has, and could not spill (503)."""

    code = "query_memory_exhausted"
    retriable = True


class QueryTooLarge(QueryMemoryExhausted):
    """The query wanted more memory than one query may have, `query.memory_max`, and could not spill (422)."""

    code = "query_too_large"
    retriable = False


class QueryCancelled(EngineError):
    """The stream was closed, or the engine stopped, before the result was complete."""

    code = "query_cancelled"
    retriable = True


class QueryKilled(EngineError):
    """An operator ended the query with KILL QUERY; to run it again is somebody's decision (409)."""

    code = "query_killed"


class NoSuchQuery(EngineError):
    """KILL QUERY names no query that waits or runs: it has ended, or never was (404)."""

    code = "no_such_query"


class QueryFailed(EngineError):
    """The query failed while it ran (500)."""

    code = "query_failed"
    read_cached: bool = False
    """Whether it read cached files: those are read through before they are used again, so it is worth a second try."""


class StatementFailed(QueryFailed):
    """What the statement asks cannot be computed from these rows: division by zero, a bad cast (500, as InfluxDB)."""

    code = "statement_failed"


class TooManyQueries(EngineError):
    """As many queries run and wait as the limits allow, or this one waited too long for its turn (503)."""

    code = "too_many_queries"
    retriable = True
