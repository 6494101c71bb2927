"""Our errors over gRPC: every one to a status with trailing metadata, and back to the same class.

The sender's half (`rpc_status`) is driven by `nodes.grpcserver` and the gRPC door, the receiver's (`peer_errors`,
`read_error`, `write_error`) by whatever calls another node. An error that no node of ours wrote is the transport's:
what it means depends on whether the call may have reached the peer (LOG L6, L7).
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc
import msgspec

from cluster import errors as cluster_errors
from cluster import raftfiles
from cluster.errors import ClusterDenied, ClusterError, PeerUnavailable
from engine import errors as engine_errors
from engine.errors import EngineError
from nodes.errors import RETRY_SECONDS
from nodes.gateway import faults
from nodes.gateway.faults import GatewayError
from storage import errors as storage_errors
from storage.errors import OutcomeUnknown, RequestTooLarge, StorageError
from wire import errors as wire_errors
from wire.errors import WireError
from wire.lineprotocol import errors as lineprotocol_errors

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CODE_KEY: Final = "runnel-code"
FAMILY_KEY: Final = "runnel-family"
"""The package's root code: two families may give one code to different classes (`body_too_large`)."""
RETRIABLE_KEY: Final = "runnel-retriable"
RETRY_KEY: Final = "runnel-retry-ms"
TABLES_KEY: Final = "runnel-tables-bin"
"""`StorageError.tables` as MessagePack: whoever splits a write must know which rows stand."""
TABLES_MAX: Final = 4096
DETAILS_BYTES_MAX: Final = 2000
"""Of a message: percent-encoded it may be three times that, and clients take 8 KiB of trailing headers."""
RETRY_MS_MAX: Final = 600_000

ROOTS: Final[tuple[type[Exception], ...]] = (StorageError, EngineError, ClusterError, WireError, GatewayError)
_MODULES: Final = (storage_errors, engine_errors, cluster_errors, raftfiles, wire_errors, lineprotocol_errors, faults)

_S: Final = grpc.StatusCode
STATUS: Final[dict[str, grpc.StatusCode]] = {
    # storage
    "storage": _S.INTERNAL,
    "store_unavailable": _S.UNAVAILABLE,
    "store_unsuitable": _S.INTERNAL,
    "store_full": _S.RESOURCE_EXHAUSTED,
    "fsync_failed": _S.INTERNAL,
    "object_missing": _S.INTERNAL,
    "corrupt_object": _S.DATA_LOSS,
    "unsupported_format": _S.INTERNAL,
    "log_damaged": _S.DATA_LOSS,
    "fenced": _S.UNAVAILABLE,
    "outcome_unknown": _S.UNAVAILABLE,
    "write_refused": _S.ABORTED,
    "shard_closed": _S.UNAVAILABLE,
    "catalog_behind": _S.UNAVAILABLE,
    "table_dropping": _S.UNAVAILABLE,
    "memory_exhausted": _S.RESOURCE_EXHAUSTED,
    "log_backlog_full": _S.RESOURCE_EXHAUSTED,
    "rows_changed": _S.ABORTED,
    "request_too_large": _S.INVALID_ARGUMENT,
    "snapshot_too_old": _S.ABORTED,
    "no_such_database": _S.NOT_FOUND,
    "no_such_table": _S.NOT_FOUND,
    "already_exists": _S.ALREADY_EXISTS,
    "view_not_writable": _S.FAILED_PRECONDITION,
    "table_in_use": _S.FAILED_PRECONDITION,
    "schema_conflict": _S.FAILED_PRECONDITION,
    "invalid_name": _S.INVALID_ARGUMENT,
    "limit_exceeded": _S.FAILED_PRECONDITION,
    # engine
    "engine": _S.INTERNAL,
    "invalid_statement": _S.INVALID_ARGUMENT,
    "not_read_only": _S.INVALID_ARGUMENT,
    "not_supported": _S.UNIMPLEMENTED,
    "unknown_table": _S.NOT_FOUND,
    "ambiguous_name": _S.INVALID_ARGUMENT,
    "invalid_parameter": _S.INVALID_ARGUMENT,
    "query_timeout": _S.DEADLINE_EXCEEDED,
    "query_memory_exhausted": _S.RESOURCE_EXHAUSTED,
    "query_too_large": _S.FAILED_PRECONDITION,
    "query_cancelled": _S.UNAVAILABLE,
    "query_killed": _S.FAILED_PRECONDITION,  # ABORTED would have clients try again, CANCELLED is their own doing
    "no_such_query": _S.NOT_FOUND,
    "query_failed": _S.INTERNAL,
    "statement_failed": _S.INVALID_ARGUMENT,
    "too_many_queries": _S.RESOURCE_EXHAUSTED,
    # wire
    "wire": _S.INVALID_ARGUMENT,
    "invalid_precision": _S.INVALID_ARGUMENT,
    "line_refused": _S.INVALID_ARGUMENT,
    # cluster
    "cluster": _S.INTERNAL,
    "malformed_message": _S.INVALID_ARGUMENT,
    "cluster_misconfigured": _S.FAILED_PRECONDITION,
    "cluster_denied": _S.PERMISSION_DENIED,
    "peer_unavailable": _S.UNAVAILABLE,
    "raft_state_unsound": _S.INTERNAL,
    # the gateway itself
    "gateway": _S.INTERNAL,
    "bad_request": _S.INVALID_ARGUMENT,
    "bad_name": _S.INVALID_ARGUMENT,
    "legacy_parameters": _S.INVALID_ARGUMENT,
    "body_too_large": _S.INVALID_ARGUMENT,
    "body_slow": _S.DEADLINE_EXCEEDED,
    "body_broken": _S.INVALID_ARGUMENT,
    "bad_encoding": _S.INVALID_ARGUMENT,
    "bad_gzip": _S.INVALID_ARGUMENT,
    "bad_content_type": _S.INVALID_ARGUMENT,
    "not_found": _S.NOT_FOUND,
    "method_not_allowed": _S.UNIMPLEMENTED,
    "missing_database": _S.NOT_FOUND,
    "not_ready": _S.UNAVAILABLE,
    "overloaded": _S.RESOURCE_EXHAUSTED,
    "client_gone": _S.CANCELLED,
    "not_built": _S.UNIMPLEMENTED,
}
RETRIABLE_STATUS: Final = frozenset({_S.UNAVAILABLE, _S.RESOURCE_EXHAUSTED, _S.ABORTED})
"""What a retriable error may be called; an error that denies its class's retry is INTERNAL instead."""

NOT_SENT: Final = (
    "failed to connect to all addresses",
    "errors resolving",
    "DNS resolution failed",
    "Name resolution failure",
    "empty address list",
    "Concurrent RPC limit exceeded",
)
"""How gRPC begins its text when no handler can have seen the call: no connection, or refused at the door."""
TOO_LARGE: Final = ("Sent message larger than max", "Received message larger than max")
_REFUSED: Final = frozenset({_S.UNAUTHENTICATED, _S.PERMISSION_DENIED, _S.FAILED_PRECONDITION})
_SILENT: Final = frozenset({_S.UNAVAILABLE, _S.DEADLINE_EXCEEDED, _S.CANCELLED, _S.RESOURCE_EXHAUSTED})


def _registry() -> dict[tuple[str, str], type[Exception]]:
    """Each (family, code) with the class that declares the code in its package's own errors module."""
    found: dict[tuple[str, str], type[Exception]] = {}
    for module in _MODULES:
        for kind in vars(module).values():
            if isinstance(kind, type) and issubclass(kind, ROOTS) and kind.__module__ == module.__name__:
                found.setdefault((_family(kind), vars(kind).get("code", "")), kind)
    return {key: kind for key, kind in found.items() if key[1]}


def _family(kind: type[Exception]) -> str:
    return next(str(root.code) for root in ROOTS if issubclass(kind, root))  # type: ignore[attr-defined]


CLASSES: Final = _registry()
_BY_CODE: Final = {code: kind for (_, code), kind in reversed(CLASSES.items())}


@dataclass(frozen=True, slots=True)
class RpcStatus:
    """How an error travels: gRPC's status, the text, and the trailing metadata."""

    status: grpc.StatusCode
    details: str
    metadata: tuple[tuple[str, str | bytes], ...]


def rpc_status(error: BaseException) -> RpcStatus | None:
    """The status for an error of ours; None for one that nobody raised on purpose."""
    if not isinstance(error, ROOTS):
        return None
    code, retriable = str(error.code), bool(error.retriable)  # type: ignore[attr-defined]
    status = STATUS.get(code, _S.INTERNAL)
    if status in RETRIABLE_STATUS and not retriable:
        status = _S.INTERNAL
    metadata: list[tuple[str, str | bytes]] = [
        (CODE_KEY, code),
        (FAMILY_KEY, _family(type(error))),
        (RETRIABLE_KEY, str(int(retriable))),
    ]
    wait = retry_ms(error)
    if wait is not None:
        metadata.append((RETRY_KEY, str(wait)))
    if isinstance(error, StorageError) and 0 < len(error.tables) <= TABLES_MAX:
        metadata.append((TABLES_KEY, msgspec.msgpack.encode(sorted(error.tables))))
    return RpcStatus(status, shortened(str(error) or type(error).__name__), tuple(metadata))


def retry_ms(error: BaseException) -> int | None:
    """How long to wait before trying again: what the error itself says, else the default; None: it does not help."""
    if not getattr(error, "retriable", False):
        return None
    own = getattr(error, "retry_ms", None)
    return own if isinstance(own, int) else RETRY_SECONDS * 1000


def shortened(text: str) -> str:
    """At most `DETAILS_BYTES_MAX` bytes of UTF-8."""
    data = text.encode("utf-8", "replace")
    if len(data) <= DETAILS_BYTES_MAX:
        return data.decode()
    return data[: DETAILS_BYTES_MAX - 4].decode("utf-8", "ignore") + " ..."


def read_error(error: grpc.aio.AioRpcError, peer: str) -> Exception:
    """What a failed call that changes nothing means: the peer's own error, or PeerUnavailable."""
    return _peers_own(error) or _before_the_handler(error, peer) or _of_a_read(error, peer)


def write_error(error: grpc.aio.AioRpcError, peer: str) -> Exception:
    """The same for a call that changes something: OutcomeUnknown unless the peer cannot have acted on it (L6)."""
    own = _peers_own(error) or _before_the_handler(error, peer)
    return own or OutcomeUnknown(f"{_said(error, peer)}; the write may stand")


def is_not_sent(error: grpc.aio.AioRpcError) -> bool:
    """Certain that no handler of the peer has seen the call, so that another try is the first one (L7)."""
    return _peers_own(error) is None and (error.details() or "").startswith(NOT_SENT)


@contextlib.contextmanager
def peer_errors(peer: str, *, is_write: bool = False) -> Iterator[None]:
    """Around a call: turns gRPC's errors into ours. ``peer`` names the other node in messages."""
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise (write_error if is_write else read_error)(error, peer) from error
    except grpc.aio.UsageError as error:  # the channel was closed before the call began
        raise PeerUnavailable(f"{peer}: {error}") from error


def _peers_own(error: grpc.aio.AioRpcError) -> Exception | None:
    """The error that a node of ours raised; None if this is the transport's."""
    said: dict[str, Any] = dict(error.trailing_metadata() or ())
    if CODE_KEY not in said:
        return None
    return restore(said, error.details() or "")


def restore(metadata: Mapping[str, Any], text: str) -> Exception:
    """The same class with the same text. An unknown code is a StorageError that keeps the text."""
    code, family = str(metadata.get(CODE_KEY, "")), str(metadata.get(FAMILY_KEY, ""))
    kind = CLASSES.get((family, code)) or _BY_CODE.get(code) or StorageError
    error = kind.__new__(kind)  # not its __init__: some take what the message is made of
    error.args = (text if code in STATUS else f"{text} ({code})",)
    retriable = metadata.get(RETRIABLE_KEY) == "1"
    if retriable != kind.retriable:  # type: ignore[attr-defined]
        _set(error, "retriable", retriable)
    wait = str(metadata.get(RETRY_KEY, ""))
    if retriable and wait.isascii() and wait.isdigit() and len(wait) < 10:
        _set(error, "retry_ms", min(int(wait), RETRY_MS_MAX))
    if isinstance(error, StorageError):
        error.tables = _tables(metadata.get(TABLES_KEY, b""))
    return error


def _tables(data: Any) -> frozenset[int]:
    try:
        return frozenset(msgspec.msgpack.decode(data, type=list[int]) if data else ())
    except (msgspec.DecodeError, TypeError):
        return frozenset()


def _set(error: Exception, name: str, value: Any) -> None:
    setattr(error, name, value)


def _before_the_handler(error: grpc.aio.AioRpcError, peer: str) -> Exception | None:
    """What the transport refused before any handler saw it."""
    if is_not_sent(error):
        return PeerUnavailable(_said(error, peer))
    if error.code() is _S.RESOURCE_EXHAUSTED and TOO_LARGE[0] in (error.details() or ""):
        return RequestTooLarge(f"{_said(error, peer)}; send less at once")
    if error.code() in _REFUSED:
        return ClusterDenied(_said(error, peer))
    if error.code() is _S.UNIMPLEMENTED:
        return ClusterError(f"{_said(error, peer)}; it is a node of another kind or version")
    return None


def _of_a_read(error: grpc.aio.AioRpcError, peer: str) -> Exception:
    if TOO_LARGE[1] in (error.details() or ""):
        return RequestTooLarge(_said(error, peer))
    if error.code() in _SILENT:
        return PeerUnavailable(_said(error, peer))
    return StorageError(_said(error, peer))


def _said(error: grpc.aio.AioRpcError, peer: str) -> str:
    return f"{peer}: {error.details() or error.code().name}"
