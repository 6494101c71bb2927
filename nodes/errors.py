"""What each error means at each door: one table for each, from an error's ``code`` to the door's status words.

Codes come from `storage.errors`, `engine.errors`, `cluster.errors`, `wire` and `nodes.gateway.faults`; a test proves
that every one of them is here. gRPC's table is in `nodes.rpcerrors`, apart, since it loads gRPC. Read by the doors;
`docs/errors.md` can be printed from it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from cluster.errors import ClusterError
from engine.errors import EngineError
from nodes.gateway.faults import GatewayError
from storage.errors import StorageError
from wire.errors import WireError

RETRY_SECONDS: Final = 1
"""What Retry-After says: a checkpoint or a take-over lasts about that long."""


class Shape(enum.Enum):
    """How InfluxDB 3 writes an error's body on its v3 endpoints."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """One row of the InfluxDB door: status, the body's shape, and whether to say Retry-After."""

    status: int
    shape: Shape = Shape.TEXT
    retry_after_seconds: int | None = None


_BUSY: Final = HttpAnswer(503, Shape.JSON, RETRY_SECONDS)
_BAD: Final = HttpAnswer(400)
_BAD_JSON: Final = HttpAnswer(400, Shape.JSON)
_BROKEN: Final = HttpAnswer(500)
_MISSING: Final = HttpAnswer(404)

INFLUX: Final[dict[str, HttpAnswer]] = {
    # storage
    "storage": _BROKEN,
    "store_unavailable": _BUSY,
    "store_unsuitable": _BROKEN,
    "store_full": _BUSY,
    "fsync_failed": _BROKEN,
    "object_missing": _BROKEN,
    "corrupt_object": _BROKEN,
    "unsupported_format": _BROKEN,
    "log_damaged": _BROKEN,
    "fenced": _BUSY,
    "outcome_unknown": _BUSY,
    "write_refused": _BUSY,
    "shard_closed": _BUSY,
    "catalog_behind": _BUSY,
    "memory_exhausted": _BUSY,
    "log_backlog_full": _BUSY,
    "rows_changed": _BUSY,
    "request_too_large": HttpAnswer(413),
    "snapshot_too_old": _BUSY,
    "no_such_database": _MISSING,
    "no_such_table": _MISSING,
    "table_dropping": _BUSY,
    "already_exists": HttpAnswer(409),
    "view_not_writable": _BAD_JSON,
    "table_in_use": HttpAnswer(409),
    "schema_conflict": _BAD,
    "invalid_name": _BAD_JSON,
    "limit_exceeded": HttpAnswer(422, Shape.JSON),
    # engine
    "engine": _BROKEN,
    "invalid_statement": _BAD,
    "not_read_only": _BAD,
    "not_supported": HttpAnswer(405),
    "unknown_table": _BAD,
    "ambiguous_name": _BAD,
    "invalid_parameter": _BAD,
    "query_timeout": HttpAnswer(504),
    "query_memory_exhausted": HttpAnswer(503, Shape.TEXT, RETRY_SECONDS),
    "query_too_large": HttpAnswer(422),
    "query_cancelled": HttpAnswer(503, Shape.TEXT, RETRY_SECONDS),
    "query_killed": HttpAnswer(409),
    "no_such_query": _MISSING,
    "query_failed": _BROKEN,
    "statement_failed": _BROKEN,
    "too_many_queries": HttpAnswer(503, Shape.TEXT, RETRY_SECONDS),
    # wire
    "wire": _BAD,
    "invalid_precision": _BAD,
    "line_refused": _BAD,
    # cluster
    "cluster": _BROKEN,
    "malformed_message": _BROKEN,
    "cluster_misconfigured": _BROKEN,
    "cluster_denied": _BROKEN,
    "peer_unavailable": _BUSY,
    "raft_state_unsound": _BROKEN,
    # the gateway itself
    "gateway": _BROKEN,
    "bad_request": _BAD,
    "bad_name": _BAD_JSON,
    "legacy_parameters": _BAD_JSON,
    "body_too_large": HttpAnswer(413),
    "body_slow": HttpAnswer(408),
    "body_broken": _BAD,
    "bad_encoding": _BAD,
    "bad_gzip": _BAD,
    "bad_content_type": HttpAnswer(415),
    "not_found": _MISSING,
    "method_not_allowed": HttpAnswer(405, Shape.JSON),
    "missing_database": HttpAnswer(404, Shape.JSON),
    "not_ready": _BUSY,
    "overloaded": _BUSY,
    "client_gone": _BAD,
    "not_built": _BAD_JSON,
}

V2_WORDS: Final[dict[int, str]] = {
    400: "invalid",
    401: "unauthorized",
    403: "forbidden",
    404: "not found",
    405: "method not allowed",
    408: "invalid",
    409: "conflict",
    413: "request too large",
    415: "invalid",
    422: "unprocessable entity",
    500: "internal error",
    503: "unavailable",
    504: "internal error",
}
"""The ``code`` of the v2 API's error bodies, by status."""

UNKNOWN: Final = _BROKEN
"""For an exception that is no error of ours: a fault in Runnel, logged with its traceback."""


def influx_answer(error: BaseException) -> HttpAnswer | None:
    """The row for an error; None for one that nobody raised on purpose.

    A class may share its parent's code and deny that retrying helps: that is a fault to look at, not a wait.
    """
    if not isinstance(error, (StorageError, EngineError, ClusterError, WireError, GatewayError)):
        return None
    answer = INFLUX.get(error.code)
    if answer is not None and answer.retry_after_seconds is not None and not error.retriable:
        return HttpAnswer(500, answer.shape)
    return answer
