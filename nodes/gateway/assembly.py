"""Put the gateway together: doors over a Backend, the application over the doors, the server over the application.

`open_gateway` has the shape that `nodes.node.NodeParts.http` asks for. This is the only module that knows all of
the gateway's parts.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from nodes.gateway.app import ErrorWriter, Gateway, Handler, Route
from nodes.gateway.budget import WaitingBudget
from nodes.gateway.clustermetrics import ClusterMetrics
from nodes.gateway.coalesce import Coalescer
from nodes.gateway.connection import ConnectionLimits
from nodes.gateway.doors.influx.answers import Answers
from nodes.gateway.doors.influx.configure import ConfigureDoor
from nodes.gateway.doors.influx.delete import DeleteDoor
from nodes.gateway.doors.influx.query import QueryDoor
from nodes.gateway.doors.influx.status import StatusDoor
from nodes.gateway.doors.influx.v1 import V1Door
from nodes.gateway.doors.influx.write import WriteDoor
from nodes.gateway.doors.operator import OperatorDoor
from nodes.gateway.http import Limits
from nodes.gateway.middleware.access import AccessMetrics
from nodes.gateway.middleware.ready import ready_gate
from nodes.gateway.middleware.request_id import request_id
from nodes.gateway.nodemetrics import NodeMetrics
from nodes.gateway.server import HttpServer
from nodes.metrics import Metrics
from nodes.resulttext import result_text
from nodes.settings_kinds import Address
from nodes.status import (
    CHECKPOINT_PATH,
    CLUSTER_PATH,
    COMPACT_PATH,
    DRAIN_PATH,
    KILL_PATH,
    QUERIES_PATH,
    REBALANCE_PATH,
    STATUS_PATH,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from nodes.backend import Backend
    from nodes.gateway.doors.influx.configure import Encoder
    from nodes.grpcserver import GrpcServer
    from nodes.health import Health
    from nodes.node import NodeContext
    from nodes.settings_cluster import TlsSettings
    from nodes.status import ClusterControl, NodeControl
    from wire.lineprotocol.model import LineParser

WAITING_BYTES_DEFAULT: Final = 256 * 2**20
REQUEST_LIMITS_DEFAULT: Final = Limits()


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """What the gateway is built over. ``make_parser`` is called once, in the parser's thread, at the first write.

    Without doors only health, metrics and the operator's routes are served: ingest and query nodes.
    """

    backend: Backend
    health: Health
    metrics: Metrics
    make_parser: Callable[[], LineParser]
    encode: Encoder
    control: NodeControl | None = None
    cluster: ClusterControl | None = None
    has_doors: bool = True
    name: str = ""
    revision: str = "unknown"


@dataclass(frozen=True, slots=True)
class GatewayLimits:
    """The gateway's limits (settings ``http.*`` and ``write.*``)."""

    request: Limits = REQUEST_LIMITS_DEFAULT
    waiting_bytes_max: int = WAITING_BYTES_DEFAULT
    coalesce_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class WritePath:
    """What all doors of a process write through: one bound on waiting bytes, one parser."""

    budget: WaitingBudget
    coalescer: Coalescer


@contextlib.asynccontextmanager
async def open_writes(parts: GatewayParts, limits: GatewayLimits) -> AsyncIterator[WritePath]:
    """Ends the parser's thread when it is left."""
    budget = WaitingBudget(limits.waiting_bytes_max)
    coalescer = Coalescer(parts.backend, parts.make_parser, parts.metrics, coalesce_bytes=limits.coalesce_bytes)
    parts.metrics.read_gauge(
        "runnel_waiting_bytes", "Bytes of request bodies held in memory.", lambda: budget.used_bytes
    )
    try:
        yield WritePath(budget, coalescer)
    finally:
        await coalescer.aclose()


@contextlib.asynccontextmanager
async def open_application(parts: GatewayParts, limits: GatewayLimits | None = None) -> AsyncIterator[Gateway]:
    """The ASGI application with everything behind it."""
    limits = limits or GatewayLimits()
    async with open_writes(parts, limits) as writes:
        yield application(parts, limits, writes)


def application(parts: GatewayParts, limits: GatewayLimits, writes: WritePath) -> Gateway:
    """The ASGI application over an open way to write."""
    budget = writes.budget
    answers = Answers(parts.backend, parts.metrics)
    doors = influx_routes(parts, answers, writes.coalescer) if parts.has_doors else []
    gateway = Gateway(
        [*doors, *status_routes(parts, answers), *operator_routes(parts, answers)],
        limits=limits.request,
        budget=budget,
        access=AccessMetrics(parts.metrics),
        on_error=answers.on_error_v3,
        preflight=answers.preflight,
        middleware=[ready_gate(parts.health), request_id],
    )
    if parts.control is not None:
        parts.metrics.add_source(NodeMetrics(parts.control))
    if parts.cluster is not None:
        parts.metrics.add_source(ClusterMetrics(parts.cluster, parts.name))
    parts.metrics.read_gauge("http_requests_in_flight", "Requests being served.", lambda: gateway.in_flight)
    return gateway


@contextlib.asynccontextmanager
async def open_server(
    parts: GatewayParts,
    limits: GatewayLimits | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    connections: ConnectionLimits | None = None,
    drain_seconds: float = 30.0,
    grpc: GrpcListen | None = None,
) -> AsyncIterator[GatewayServer]:
    """The whole gateway, listening; with ``grpc`` the public API there, too."""
    limits = limits or GatewayLimits()
    async with contextlib.AsyncExitStack() as stack:
        writes = await stack.enter_async_context(open_writes(parts, limits))
        app = application(parts, limits, writes)
        http = HttpServer(app, host=host, port=port, limits=connections, drain_seconds=drain_seconds)
        await stack.enter_async_context(http)
        parts.metrics.read_gauge("http_connections", "Open connections.", lambda: http.connections)
        server = GatewayServer(http, None)
        if grpc is not None:
            from nodes.gateway.grpcassembly import open_public  # at first need: it loads gRPC

            server = GatewayServer(http, await stack.enter_async_context(open_public(parts, limits, writes, grpc)))
        yield server


@dataclass(frozen=True, slots=True)
class GrpcListen:
    """Where the public API is served over gRPC. ``tls`` off: plaintext."""

    host: str
    port: int
    tls: TlsSettings


@dataclass(frozen=True, slots=True)
class GatewayServer:
    """Everything that listens for clients in this process, as `nodes.node` sees it."""

    http: HttpServer
    grpc: GrpcServer | None

    @property
    def address(self) -> tuple[str, int]:
        """Of HTTP."""
        return self.http.address

    @property
    def connections(self) -> int:
        """Open connections of HTTP."""
        return self.http.connections

    @property
    def listen(self) -> dict[str, str]:
        """What listens beside HTTP: door -> HOST:PORT."""
        return {} if self.grpc is None else {"grpc": str(Address(*self.grpc.address))}

    async def drain(self, seconds: float) -> None:
        """Both at once."""
        if self.grpc is None:
            await self.http.drain(seconds)
        else:
            await asyncio.gather(self.http.drain(seconds), self.grpc.drain(seconds))


def open_gateway(context: NodeContext, backend: Backend) -> contextlib.AbstractAsyncContextManager[GatewayServer]:
    """The HTTP part of a node that clients talk to, from its settings."""
    return _open(context, backend, has_doors=True)


def open_operator(context: NodeContext, backend: Backend) -> contextlib.AbstractAsyncContextManager[GatewayServer]:
    """The HTTP part of a node that only nodes talk to: health, metrics, the operator's routes."""
    return _open(context, backend, has_doors=False)


@contextlib.asynccontextmanager
async def _open(context: NodeContext, backend: Backend, *, has_doors: bool) -> AsyncIterator[GatewayServer]:
    http = context.settings.http
    parts = GatewayParts(
        backend=backend,
        health=context.health,
        metrics=Metrics(),
        make_parser=_make_parser,
        encode=result_text,
        control=context.control,
        cluster=context.cluster,
        has_doors=has_doors,
        name=context.settings.node_name,
        revision=_revision(),
    )
    limits = GatewayLimits(
        request=Limits(http.request_bytes_max, http.body_seconds, http.send_stall_seconds),
        waiting_bytes_max=context.budgets.waiting_bytes,
        coalesce_bytes=context.settings.write.coalesce_bytes,
    )
    connections = ConnectionLimits(http.connections_max, http.body_seconds, http.keep_alive_seconds)
    async with open_server(
        parts,
        limits,
        host=http.listen.host,
        port=http.listen.port,
        connections=connections,
        drain_seconds=context.settings.node.drain_seconds,
        grpc=_grpc_listen(context) if has_doors else None,
    ) as server:
        yield server


def _grpc_listen(context: NodeContext) -> GrpcListen | None:
    """Always on a cluster's gateway; in one process only if an address is given, since gRPC costs memory."""
    grpc = context.settings.grpc
    listen = grpc.listen if context.cluster is None else grpc.address
    if listen is None:
        return None
    return GrpcListen(listen.host, listen.port, context.settings.tls)


def influx_routes(parts: GatewayParts, answers: Answers, coalescer: Coalescer) -> list[Route]:
    """Every endpoint of the InfluxDB door."""
    write = WriteDoor(coalescer, answers)
    queries = QueryDoor(parts.backend, answers)
    configure = ConfigureDoor(parts.backend, answers, parts.encode)
    v1 = V1Door(parts.backend, answers)

    def route(methods: str, pattern: str, handler: Handler, on_error: ErrorWriter = answers.on_error_v3) -> list[Route]:
        return [Route(method, pattern, handler, on_error, is_traced=True) for method in methods.split()]

    return [
        Route("POST", "/api/v3/write_lp", write.v3, answers.on_error_v3),
        Route("POST", "/api/v2/write", write.v2, answers.on_error_v2),
        Route("POST", "/write", write.v1, answers.on_error_v1),
        *route("POST", "/api/v2/delete", DeleteDoor(parts.backend, answers).v2, answers.on_error_v2),
        *route("GET POST", "/api/v3/query_sql", queries.sql),
        *route("GET POST", "/api/v3/query_influxql", queries.influxql),
        *route("GET POST", "/query", v1.query, answers.on_error_v1),
        *route("GET", "/api/v3/configure/database", configure.list_databases),
        *route("POST", "/api/v3/configure/database", configure.create_database),
        *route("PUT", "/api/v3/configure/database", configure.update_database),
        *route("DELETE", "/api/v3/configure/database", configure.delete_database),
        *route("POST", "/api/v3/configure/database/retention_period", configure.set_retention),
        *route("DELETE", "/api/v3/configure/database/retention_period", configure.clear_retention),
        *route("POST", "/api/v3/configure/table", configure.create_table),
        *route("PUT", "/api/v3/configure/table", configure.update_table),
        *route("DELETE", "/api/v3/configure/table", configure.delete_table),
    ]


def status_routes(parts: GatewayParts, answers: Answers) -> list[Route]:
    """Health, metrics and status: every node has them."""
    status = StatusDoor(answers, parts.health, parts.metrics, parts.control, parts.revision)

    def free(methods: str, pattern: str, handler: Handler) -> list[Route]:
        return [Route(method, pattern, handler, answers.on_error_v3, needs_backend=False) for method in methods.split()]

    return [
        *free("GET POST", "/ping", status.ping),
        *free("GET", "/health", status.health),
        *free("GET", "/api/v1/health", status.health),
        *free("GET", "/health/ready", status.health),
        *free("GET", "/health/live", status.live),
        *free("GET", "/health/startup", status.startup),
        *free("GET", "/metrics", status.metrics),
        *free("GET", STATUS_PATH, status.status),
        Route("POST", CHECKPOINT_PATH, status.checkpoint, answers.on_error_v3, is_traced=True),
        Route("POST", COMPACT_PATH, status.compact, answers.on_error_v3, is_traced=True),
    ]


def operator_routes(parts: GatewayParts, answers: Answers) -> list[Route]:
    """Every endpoint of the operator's door. Looking at the cluster works while the node starts."""
    door = OperatorDoor(parts.cluster, parts.backend)
    return [
        Route("GET", CLUSTER_PATH, door.cluster, answers.on_error_v3, needs_backend=False),
        Route("POST", DRAIN_PATH, door.drain, answers.on_error_v3, is_traced=True),
        Route("POST", REBALANCE_PATH, door.rebalance, answers.on_error_v3, is_traced=True),
        Route("GET", QUERIES_PATH, door.queries, answers.on_error_v3, is_traced=True),
        Route("POST", KILL_PATH, door.kill, answers.on_error_v3, is_traced=True),
    ]


def _make_parser() -> LineParser:
    from wire.lineprotocol import create_parser

    return create_parser()


def _revision() -> str:
    from nodes.node import version

    return version()
