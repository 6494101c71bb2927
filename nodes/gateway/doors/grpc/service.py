"""The gRPC door: `runnel.v1.Runnel` over a Backend, its limits those of the HTTP doors.

It raises our errors; `nodes.grpcserver` makes statuses of them. Put together in `nodes.gateway.grpcassembly`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from engine.errors import QueryTimeout
from nodes.backend import Principal, QueryRequest
from nodes.gateway.doors.grpc.pieces import ipc_pieces
from nodes.gateway.faults import BadRequest, BodySlow, BodyTooLarge, ClientGone, NotReady
from nodes.gateway.middleware.ready import SERVING
from nodes.grpcserver import request_id
from nodes.health import Phase
from nodes.idempotency import check_key
from protos import runnel_pb2 as pb
from protos.runnel_pb2_grpc import RunnelServicer
from storage.errors import LimitExceeded, NoSuchDatabase
from wire.lineprotocol.model import Precision

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from grpc import aio

    from nodes.backend import Backend
    from nodes.gateway.arrowwrite import ArrowWriter
    from nodes.gateway.budget import WaitingBudget
    from nodes.gateway.coalesce import Coalescer, WriteReport
    from nodes.gateway.http import Limits
    from nodes.health import Health
    from nodes.status import ClusterControl, NodeControl
    from storage.schema import Table

ANONYMOUS: Final = Principal()
DOOR: Final = "grpc"
WRITTEN_KEY: Final = "runnel-messages-written"
STATEMENT_BYTES_MAX: Final = 1 << 20
PARAMETERS_MAX: Final = 256
FAULTS_MAX: Final = 100
"""Refused lines that an answer names; the others are counted."""
FAULT_CHARACTERS_MAX: Final = 1000
PRECISIONS: Final[dict[int, Precision]] = {
    pb.PRECISION_UNSPECIFIED: Precision.AUTO,
    pb.PRECISION_SECOND: Precision.SECOND,
    pb.PRECISION_MILLISECOND: Precision.MILLISECOND,
    pb.PRECISION_MICROSECOND: Precision.MICROSECOND,
    pb.PRECISION_NANOSECOND: Precision.NANOSECOND,
}


@dataclass(frozen=True, slots=True)
class DoorParts:
    """What the door stands on; shared with the HTTP doors where a limit counts both."""

    backend: Backend
    coalescer: Coalescer
    arrow: ArrowWriter
    budget: WaitingBudget
    health: Health
    limits: Limits
    control: NodeControl | None = None
    cluster: ClusterControl | None = None


@dataclass(slots=True)
class _Tally:
    """What became of the messages of one stream."""

    messages: int = 0
    rejected: int = 0
    faults: list[pb.LineFault] = field(default_factory=list)

    def add(self, reply: pb.WriteReply) -> None:
        self.messages += 1
        self.rejected += reply.rejected
        self.faults += reply.faults[: FAULTS_MAX - len(self.faults)]


class RunnelDoor(RunnelServicer):
    """Handlers of the service."""

    def __init__(self, parts: DoorParts) -> None:
        self._parts = parts

    async def Write(self, request: pb.WriteRequest, context: Any) -> pb.WriteReply:
        """One write."""
        self._require_ready()
        return await self._write(request, request.database)

    async def WriteStream(self, request_iterator: Any, context: Any) -> pb.WriteStreamReply:
        """One write after the other."""
        self._require_ready()
        database, tally = "", _Tally()
        try:
            async for request in self._messages(request_iterator):
                database = request.database or database
                tally.add(await self._write(request, database))
                if self._parts.health.phase is Phase.DRAINING:
                    raise NotReady("this node stops; send what is left to another one, or again")
        except Exception:
            context.set_trailing_metadata(((WRITTEN_KEY, str(tally.messages)),))
            raise
        return pb.WriteStreamReply(messages=tally.messages, rejected=tally.rejected, faults=tally.faults)

    async def Query(self, request: pb.QueryRequest, context: aio.ServicerContext[Any, Any]) -> None:  # type: ignore[override]
        """Results as pieces of an Arrow IPC stream. The caller's deadline is the query's."""
        self._require_ready()
        if len(request.sql) > STATEMENT_BYTES_MAX:
            raise BadRequest(f"a statement of {len(request.sql)} characters; at most {STATEMENT_BYTES_MAX}")
        seconds = context.time_remaining()
        query = QueryRequest(
            _database(request.database), request.sql, _parameters(request.parameters), seconds, request_id(),
            DOOR, client_address(context.peer()), may_write=True,
        )  # fmt: skip
        result = await self._parts.backend.query(query, ANONYMOUS)
        try:
            async with asyncio.timeout(seconds):  # gRPC notices late while the client takes nothing
                async for piece in ipc_pieces(result):
                    await self._send(context, pb.QueryReply(ipc=piece))
        except TimeoutError:
            raise QueryTimeout("the call's deadline has passed before the result was whole") from None
        finally:
            await result.aclose()

    async def ListTables(self, request: pb.ListTablesRequest, context: Any) -> pb.ListTablesReply:
        """From a Catalog that was proved current."""
        self._require_ready()
        name = _database(request.database)
        view = await self._parts.backend.refresh()
        if view.database(name) is None:
            raise NoSuchDatabase(f"database not found: {name}")
        return pb.ListTablesReply(tables=[_table(table) for table in view.tables(name)])

    async def ClusterStatus(self, request: pb.ClusterStatusRequest, context: Any) -> pb.ClusterStatusReply:
        """Answered while the node starts, too."""
        parts = self._parts
        report = parts.health.report()
        reply = pb.ClusterStatusReply(
            phase=report.phase.value, is_ready=report.is_ready, store_id=parts.backend.store_id
        )
        if parts.control is not None:
            node = parts.control.status()
            reply.node, reply.version, reply.catalog_revision = node.name, node.version, node.catalog_revision
        if parts.cluster is not None:
            cluster = parts.cluster.cluster_status()
            reply.cluster = cluster.name
            for member in cluster.members:
                reply.nodes.add(
                    name=member.name, kind=member.kind, state=member.state, version=member.version,
                    addresses=member.addresses,
                )  # fmt: skip
        return reply

    def _require_ready(self) -> None:
        health = self._parts.health
        if health.phase not in SERVING:
            raise NotReady(f"this node is not serving now ({health.report().text}); try again")

    async def _messages(self, requests: AsyncIterator[pb.WriteRequest]) -> AsyncIterator[pb.WriteRequest]:
        """Each within its time: a stream that stands still holds a place that others need."""
        while True:
            try:
                async with asyncio.timeout(self._parts.limits.body_seconds):
                    request = await anext(requests, None)
            except TimeoutError:
                raise BodySlow from None
            if request is None:
                return
            yield request

    async def _write(self, request: pb.WriteRequest, database: str) -> pb.WriteReply:
        size = len(request.lines.lines) + len(request.arrow.ipc)
        limit = self._parts.limits.request_bytes_max
        if size > limit:
            raise BodyTooLarge(limit)
        _database(database)
        key = check_key(request.idempotency_key) if request.idempotency_key else ""
        self._parts.budget.take(size)
        try:
            match request.WhichOneof("rows"):
                case "lines":
                    return await self._write_lines(database, request.lines, key)
                case "arrow":
                    return await self._write_arrow(database, request.arrow, key)
                case _:
                    raise BadRequest("the write has no rows")
        finally:
            self._parts.budget.give(size)

    async def _write_lines(self, database: str, lines: pb.LineProtocol, key: str) -> pb.WriteReply:
        precision = PRECISIONS.get(lines.precision)
        if precision is None:
            raise BadRequest(f"no precision has the number {lines.precision}")
        if not lines.lines or lines.lines.isspace():
            raise BadRequest("the write has no lines")
        report = await self._parts.coalescer.write(
            database,
            precision,
            lines.lines,
            is_all_or_nothing=lines.all_or_nothing,
            principal=ANONYMOUS,
            idempotency_key=key,
        )
        if report.rejected and lines.all_or_nothing:
            raise _refusal(report)
        return pb.WriteReply(rejected=report.rejected, faults=_faults(report))

    async def _write_arrow(self, database: str, rows: pb.ArrowRows, key: str) -> pb.WriteReply:
        if not rows.table:
            raise BadRequest("rows as Arrow need the name of their table")
        await self._parts.arrow.write(
            database, rows.table, rows.ipc, tags=rows.tags, principal=ANONYMOUS, idempotency_key=key
        )
        return pb.WriteReply()

    async def _send(self, context: aio.ServicerContext[Any, Any], reply: pb.QueryReply) -> None:
        try:
            async with asyncio.timeout(self._parts.limits.send_stall_seconds):
                await context.write(reply)
        except TimeoutError:
            raise ClientGone("the client takes nothing of its result") from None


def client_address(peer: str) -> str:
    """HOST:PORT of what gRPC calls a peer: ``ipv4:127.0.0.1:1``, ``ipv6:%5B::1%5D:1``."""
    return unquote(peer.removeprefix("ipv4:").removeprefix("ipv6:"))


def _database(name: str) -> str:
    if not name:
        raise BadRequest("the database is missing")
    return name


def _parameters(given: Mapping[str, pb.Parameter]) -> dict[str, Any]:
    if len(given) > PARAMETERS_MAX:
        raise BadRequest(f"{len(given)} parameters; at most {PARAMETERS_MAX}")
    return {name: _value(parameter) for name, parameter in given.items()}


def _value(parameter: pb.Parameter) -> bool | int | float | str | None:
    kind = parameter.WhichOneof("value")
    value: bool | int | float | str | None = None if kind is None else getattr(parameter, kind)
    return value


def _refusal(report: WriteReport) -> Exception:
    first = report.errors[0]
    text = f"{report.rejected} lines were refused and none was written; line {first.line}: {first.message}"
    return LimitExceeded(text) if report.is_over_limit else BadRequest(text)


def _faults(report: WriteReport) -> list[pb.LineFault]:
    return [
        pb.LineFault(line=one.line, message=one.message[:FAULT_CHARACTERS_MAX], original=one.original)
        for one in report.errors[:FAULTS_MAX]
    ]


def _table(table: Table) -> pb.TableInfo:
    columns = [pb.ColumnInfo(name=c.name, role=c.role.value, type=c.kind.value) for c in table.columns]
    return pb.TableInfo(name=table.name, columns=columns, partitions=len(table.partitions))
