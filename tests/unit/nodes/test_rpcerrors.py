"""Every error of ours survives gRPC; what gRPC itself says is judged by whether the peer may have acted."""

from __future__ import annotations

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata

from cluster.errors import ClusterDenied, ClusterError, PeerUnavailable
from engine.errors import QueryTimeout, UnknownTable
from nodes.errors import INFLUX
from nodes.gateway.faults import BodyTooLarge, MethodNotAllowed, NotReady, Overloaded
from nodes.rpcerrors import (
    CLASSES,
    CODE_KEY,
    DETAILS_BYTES_MAX,
    RETRIABLE_STATUS,
    ROOTS,
    STATUS,
    is_not_sent,
    peer_errors,
    read_error,
    restore,
    retry_ms,
    rpc_status,
    write_error,
)
from storage.errors import (
    Fenced,
    MemoryExhausted,
    NoSuchTable,
    OutcomeUnknown,
    RequestTooLarge,
    SchemaConflict,
    StorageError,
)
from storage.objects import StoreDenied
from tests.unit.gateway.test_errors import import_all, ours
from wire.lineprotocol.errors import BodyTooLarge as TooMuchText

CODE = grpc.StatusCode
KINDS = list(CLASSES.values())


def transport(code: grpc.StatusCode, details: str = "", *metadata: tuple[str, str | bytes]) -> AioRpcError:
    return AioRpcError(code, Metadata(), Metadata(*metadata), details)


def travel(error: Exception, *, is_write: bool = False) -> Exception:
    """Through gRPC and out again."""
    sent = rpc_status(error)
    assert sent is not None
    failed = transport(sent.status, sent.details, *sent.metadata)
    return (write_error if is_write else read_error)(failed, "n1")


def made(kind: type[Exception], text: str) -> Exception:
    error = kind.__new__(kind)
    error.args = (text,)
    return error


def test_the_table_has_every_code_and_no_other() -> None:
    import_all()
    codes = {kind.code for root in ROOTS for kind in ours(root)}  # type: ignore[attr-defined]
    assert set(STATUS) == codes
    assert set(STATUS) == set(INFLUX)


def test_the_registry_has_every_code_of_each_family() -> None:
    import_all()
    for root in ROOTS:
        codes = {kind.code for kind in ours(root)}  # type: ignore[attr-defined]
        assert codes == {code for family, code in CLASSES if family == root.code}  # type: ignore[attr-defined]


@pytest.mark.parametrize("kind", KINDS)
def test_what_can_be_retried_has_a_status_that_says_so(kind: type[Exception]) -> None:
    sent = rpc_status(made(kind, "x"))
    assert sent is not None
    assert (sent.status in RETRIABLE_STATUS) == kind.retriable  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_write", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_class_comes_out(kind: type[Exception], is_write: bool) -> None:
    back = travel(made(kind, "tröubles\nwith a table"), is_write=is_write)
    assert type(back) is kind
    assert str(back) == "tröubles\nwith a table"
    assert back.retriable == kind.retriable  # type: ignore[attr-defined]
    assert retry_ms(back) == (1000 if kind.retriable else None)  # type: ignore[attr-defined]


def test_one_code_in_two_families_is_two_classes() -> None:
    assert type(travel(BodyTooLarge(10))) is BodyTooLarge
    assert type(travel(TooMuchText("too much"))) is TooMuchText
    assert str(travel(BodyTooLarge(10))) == "max request size (10 bytes) exceeded"
    assert type(travel(MethodNotAllowed("GET"))) is MethodNotAllowed


def test_a_class_that_denies_its_parents_retry_stays_denied() -> None:
    sent = rpc_status(StoreDenied("no permission"))
    assert sent is not None
    assert sent.status is CODE.INTERNAL
    back = travel(StoreDenied("no permission"))
    assert isinstance(back, StorageError)
    assert back.code == "store_unavailable"
    assert back.retriable is False
    assert retry_ms(back) is None
    assert travel(back).retriable is False  # type: ignore[attr-defined]  # and over the next hop
    assert MemoryExhausted.retriable


def test_an_errors_own_wait_travels() -> None:
    error = Overloaded("full")
    error.retry_ms = 250  # type: ignore[attr-defined]
    assert retry_ms(travel(error)) == 250
    assert retry_ms(travel(travel(error))) == 250


def test_which_tables_a_write_failed_for_travels() -> None:
    error = NoSuchTable("gone")
    error.tables = frozenset({1, 2**64 - 1})
    back = travel(error, is_write=True)
    assert isinstance(back, NoSuchTable)
    assert back.tables == error.tables
    assert travel(NoSuchTable("gone")).tables == frozenset()  # type: ignore[attr-defined]
    garbage = restore({CODE_KEY: "no_such_table", "runnel-tables-bin": b"\xc1"}, "gone")
    assert garbage.tables == frozenset()  # type: ignore[attr-defined]


def test_an_unknown_code_is_a_storage_error_with_its_text() -> None:
    back = read_error(transport(CODE.ABORTED, "newer", (CODE_KEY, "from_the_future"), ("runnel-retriable", "1")), "n1")
    assert type(back) is StorageError
    assert str(back) == "newer (from_the_future)"
    assert back.retriable is True


@pytest.mark.parametrize("wait", ["", "-1", "x", "9" * 50, "²"])
def test_a_strange_wait_is_left_out(wait: str) -> None:
    back = restore({CODE_KEY: "fenced", "runnel-retriable": "1", "runnel-retry-ms": wait}, "x")
    assert retry_ms(back) == 1000
    assert type(back) is Fenced


def test_a_long_text_is_cut_to_what_headers_hold() -> None:
    sent = rpc_status(SchemaConflict("ü" * 10_000))
    assert sent is not None
    assert len(sent.details.encode()) <= DETAILS_BYTES_MAX
    assert sent.details.endswith("ü ...")
    lone = rpc_status(SchemaConflict("\udc80"))
    assert lone is not None
    assert lone.details == "?"


def test_a_fault_is_nobodys_error() -> None:
    assert rpc_status(ValueError("a bug")) is None
    assert rpc_status(OSError(5, "io")) is None


@pytest.mark.parametrize(
    ("code", "details"),
    [
        (CODE.UNAVAILABLE, "failed to connect to all addresses; last error: Connection refused"),
        (CODE.UNAVAILABLE, "DNS resolution failed for nowhere:1"),
        (CODE.RESOURCE_EXHAUSTED, "Concurrent RPC limit exceeded!"),
    ],
)
def test_certainly_not_sent(code: grpc.StatusCode, details: str) -> None:
    failed = transport(code, details)
    assert is_not_sent(failed)
    assert type(read_error(failed, "n1")) is PeerUnavailable
    assert type(write_error(failed, "n1")) is PeerUnavailable
    assert str(write_error(failed, "n1")).startswith("n1: ")


@pytest.mark.parametrize(
    "code", [CODE.UNAVAILABLE, CODE.DEADLINE_EXCEEDED, CODE.CANCELLED, CODE.UNKNOWN, CODE.INTERNAL, CODE.DATA_LOSS]
)
def test_a_write_whose_answer_is_lost_is_unknown(code: grpc.StatusCode) -> None:
    failed = transport(code, "Socket closed")
    assert not is_not_sent(failed)
    back = write_error(failed, "n1")
    assert type(back) is OutcomeUnknown
    assert "may stand" in str(back)


def test_a_read_without_an_answer_can_be_tried_elsewhere() -> None:
    assert type(read_error(transport(CODE.UNAVAILABLE, "Socket closed"), "n1")) is PeerUnavailable
    assert type(read_error(transport(CODE.DEADLINE_EXCEEDED), "n1")) is PeerUnavailable
    assert type(read_error(transport(CODE.INTERNAL, "internal error"), "n1")) is StorageError


def test_an_error_of_ours_that_looks_like_the_transports_is_ours() -> None:
    assert type(travel(QueryTimeout("slow"))) is QueryTimeout
    assert type(travel(NotReady("starting"), is_write=True)) is NotReady
    forged = made(NotReady, "failed to connect to all addresses")
    sent = rpc_status(forged)
    assert sent is not None
    assert not is_not_sent(transport(sent.status, sent.details, *sent.metadata))


@pytest.mark.parametrize(
    ("code", "details", "kind"),
    [
        (CODE.RESOURCE_EXHAUSTED, "CLIENT: Sent message larger than max (9 vs. 8)", RequestTooLarge),
        (CODE.PERMISSION_DENIED, "no", ClusterDenied),
        (CODE.UNIMPLEMENTED, "Method not found!", ClusterError),
    ],
)
def test_refused_before_any_handler(code: grpc.StatusCode, details: str, kind: type[Exception]) -> None:
    for judge in (read_error, write_error):
        assert type(judge(transport(code, details), "n1")) is kind


def test_around_a_call() -> None:
    with pytest.raises(PeerUnavailable), peer_errors("n1"):
        raise transport(CODE.UNAVAILABLE)
    with pytest.raises(OutcomeUnknown), peer_errors("n1", is_write=True):
        raise transport(CODE.UNAVAILABLE)
    with pytest.raises(PeerUnavailable), peer_errors("n1", is_write=True):
        raise grpc.aio.UsageError("Channel is closed.")
    with pytest.raises(UnknownTable), peer_errors("n1", is_write=True):
        raise UnknownTable("not the transport's")
