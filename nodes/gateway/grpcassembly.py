"""Put the gRPC door together: its service over the ways that the HTTP doors write and read by, and its server.

Apart from `nodes.gateway.assembly`, since it loads gRPC. `public_service` is also what a cluster's gateway adds to the
server that its nodes talk to.
"""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from cluster.tlsfiles import TlsFiles, TlsSource
from nodes.gateway.arrowwrite import ArrowWriter
from nodes.gateway.doors.grpc.metrics import CallMetrics
from nodes.gateway.doors.grpc.service import DoorParts, RunnelDoor
from nodes.grpcserver import GrpcServer, GrpcService, Receiving
from protos import runnel_pb2
from protos.runnel_pb2_grpc import add_RunnelServicer_to_server

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cluster.errors import ClusterError
    from nodes.gateway.assembly import GatewayLimits, GatewayParts, GrpcListen, WritePath
    from nodes.health import Health
    from nodes.settings_cluster import TlsSettings

ENVELOPE_BYTES: Final = 64 * 1024
"""What a message may have around its rows."""
RECEIVING_MIN, RECEIVING_MAX = 16, 64
"""Messages that are being received at once, within the bound on waiting bytes."""
HEALTH_SECONDS: Final = 0.25
"""How late the health service may be."""

log = structlog.get_logger(__name__)


def public_service(parts: GatewayParts, limits: GatewayLimits, writes: WritePath) -> GrpcService:
    """`runnel.v1.Runnel` for a server whose messages may have ``limits.request.request_bytes_max``."""
    door = RunnelDoor(
        DoorParts(
            backend=parts.backend,
            coalescer=writes.coalescer,
            arrow=ArrowWriter(parts.backend),
            budget=writes.budget,
            health=parts.health,
            limits=limits.request,
            control=parts.control,
            cluster=parts.cluster,
        )
    )
    name = runnel_pb2.DESCRIPTOR.services_by_name["Runnel"].full_name
    fitting = limits.waiting_bytes_max // limits.request.request_bytes_max
    return GrpcService(
        name,
        door,
        add_RunnelServicer_to_server,
        is_public=True,
        receiving=Receiving(min(max(fitting, RECEIVING_MIN), RECEIVING_MAX), limits.request.body_seconds),
        observe=CallMetrics(parts.metrics, name).count,
    )


@contextlib.asynccontextmanager
async def open_public(
    parts: GatewayParts, limits: GatewayLimits, writes: WritePath, where: GrpcListen
) -> AsyncIterator[GrpcServer]:
    """The public API alone, listening."""
    server = GrpcServer(
        where.host,
        where.port,
        [public_service(parts, limits, writes)],
        tls=tls_source(where.tls),
        require_client_certificate=False,  # clients are not nodes: what they may do is for `auth.mode` to say
        message_bytes_max=limits.request.request_bytes_max + ENVELOPE_BYTES,
    )
    async with server:
        following = asyncio.create_task(follow_health(parts.health, server))
        try:
            yield server
        finally:
            following.cancel()
            await asyncio.wait([following])


async def follow_health(health: Health, server: GrpcServer) -> None:
    """Let the gRPC health service say what the node says; runs until it is cancelled."""
    said = False
    while True:
        if health.is_ready != said:
            said = health.is_ready
            await server.set_serving(said)
        await asyncio.sleep(HEALTH_SECONDS)


def tls_source(settings: TlsSettings) -> TlsSource | None:
    """The files that the settings name, watched; None if TLS is off. ClusterMisconfigured if they do not fit."""
    if not settings.is_on:
        return None
    files = TlsFiles(*(Path(path).expanduser() for path in (settings.ca, settings.cert, settings.key)))
    return TlsSource(files, on_refused=_say_refused)


def _say_refused(error: ClusterError) -> None:
    log.error("changed TLS files cannot be used; the ones before stay in use", reason=str(error))
