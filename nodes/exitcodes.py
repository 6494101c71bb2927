"""Exit codes of every `runnel` command (BSD sysexits), and the root of the errors that end one.

Scripts and supervisors rely on these numbers. `exit_code` maps any error to its number; driven by
`nodes.__main__` and `nodes.node`. docs/settings.md prints `MEANINGS`.
"""

from __future__ import annotations

import enum
import errno
from typing import ClassVar, Final

from cluster.errors import ClusterError
from storage.errors import StorageError


class ExitCode(enum.IntEnum):
    """What the process's end means."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    UNAVAILABLE = 69
    INTERNAL = 70
    IO = 74
    TRY_LATER = 75
    DENIED = 77
    CONFIG = 78


MEANINGS: Final[dict[ExitCode, str]] = {
    ExitCode.OK: "Done; also after SIGTERM or SIGINT, when everything was drained and closed.",
    ExitCode.FAILURE: "The answer is no: lines were rejected, the query failed, the node is not ready.",
    ExitCode.USAGE: "The command line is wrong.",
    ExitCode.UNAVAILABLE: "A port is taken, or the server, the store or another node cannot be reached.",
    ExitCode.INTERNAL: "A fault in Runnel itself; the log has the traceback.",
    ExitCode.IO: "The store or a disk failed, is unsuitable, full or damaged.",
    ExitCode.TRY_LATER: "Another process runs on this data, or has taken it over: try again when it has ended.",
    ExitCode.DENIED: "Permission denied, by the system, by the server or by another node.",
    ExitCode.CONFIG: "The settings cannot be used; the message names each problem.",
}
"""A second SIGTERM or SIGINT ends the process at once with 128 + the signal's number, as shells expect."""


class NodeError(Exception):
    """Root of what this package raises on purpose. The message says what, where and what to do."""

    code: ClassVar[str] = "node"
    retriable: ClassVar[bool] = False
    exit_code: ClassVar[ExitCode] = ExitCode.FAILURE


class PortTaken(NodeError):
    """Another process listens there."""

    code = "port_taken"
    exit_code = ExitCode.UNAVAILABLE


class ServerUnreachable(NodeError):
    """No server answers at the host that a client command was given."""

    code = "server_unreachable"
    retriable = True
    exit_code = ExitCode.UNAVAILABLE


class ServerRefused(NodeError):
    """The server answered, and the answer is no."""

    code = "server_refused"


class ServerDenied(NodeError):
    """The server wants other credentials."""

    code = "server_denied"
    exit_code = ExitCode.DENIED


class CommandFailed(NodeError):
    """A command could not do what it was asked."""

    code = "command_failed"


BY_STORAGE_CODE: Final[dict[str, ExitCode]] = {
    "storage": ExitCode.IO,
    "store_unavailable": ExitCode.UNAVAILABLE,
    "store_unsuitable": ExitCode.IO,
    "store_full": ExitCode.IO,
    "fsync_failed": ExitCode.IO,
    "object_missing": ExitCode.IO,
    "corrupt_object": ExitCode.IO,
    "unsupported_format": ExitCode.IO,
    "log_damaged": ExitCode.IO,
    "fenced": ExitCode.TRY_LATER,
    "outcome_unknown": ExitCode.TRY_LATER,
    "write_refused": ExitCode.TRY_LATER,
    "shard_closed": ExitCode.TRY_LATER,
    "catalog_behind": ExitCode.TRY_LATER,
    "memory_exhausted": ExitCode.TRY_LATER,
    "log_backlog_full": ExitCode.TRY_LATER,
    "rows_changed": ExitCode.TRY_LATER,
    "request_too_large": ExitCode.FAILURE,
    "snapshot_too_old": ExitCode.TRY_LATER,
    "no_such_database": ExitCode.FAILURE,
    "no_such_table": ExitCode.FAILURE,
    "table_dropping": ExitCode.TRY_LATER,
    "already_exists": ExitCode.FAILURE,
    "view_not_writable": ExitCode.FAILURE,
    "table_in_use": ExitCode.FAILURE,
    "schema_conflict": ExitCode.FAILURE,
    "invalid_name": ExitCode.FAILURE,
    "limit_exceeded": ExitCode.FAILURE,
}

BY_CLUSTER_CODE: Final[dict[str, ExitCode]] = {
    "cluster": ExitCode.INTERNAL,
    "malformed_message": ExitCode.INTERNAL,
    "cluster_misconfigured": ExitCode.CONFIG,
    "cluster_denied": ExitCode.DENIED,
    "peer_unavailable": ExitCode.UNAVAILABLE,
}

BY_ERRNO: Final[dict[int, ExitCode]] = {
    errno.EADDRINUSE: ExitCode.UNAVAILABLE,
    errno.EADDRNOTAVAIL: ExitCode.UNAVAILABLE,
    errno.ECONNREFUSED: ExitCode.UNAVAILABLE,
    errno.EACCES: ExitCode.DENIED,
    errno.EPERM: ExitCode.DENIED,
}


def exit_code(error: BaseException) -> ExitCode:
    """The exit code for an error that ends the process. Of a group, the gravest of its parts."""
    if isinstance(error, BaseExceptionGroup):
        return max((exit_code(part) for part in error.exceptions), key=_GRAVITY.index)
    if isinstance(error, NodeError):
        return error.exit_code
    if isinstance(error, StorageError):
        return BY_STORAGE_CODE.get(error.code, ExitCode.INTERNAL)
    if isinstance(error, ClusterError):
        return BY_CLUSTER_CODE.get(error.code, ExitCode.INTERNAL)
    if isinstance(error, OSError):
        return BY_ERRNO.get(error.errno or 0, ExitCode.IO)
    return ExitCode.INTERNAL


_GRAVITY: Final = (
    ExitCode.OK,
    ExitCode.FAILURE,
    ExitCode.USAGE,
    ExitCode.UNAVAILABLE,
    ExitCode.DENIED,
    ExitCode.CONFIG,
    ExitCode.INTERNAL,
    ExitCode.TRY_LATER,
    ExitCode.IO,
)
