"""A gRPC server of the cluster on a free port with scripted answers, and channels to it. For tests of the plumbing."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final

from cluster.channels import Channels
from nodes.grpcserver import GrpcServer, GrpcService
from protos import internal_pb2 as pb
from protos.internal_pb2_grpc import (
    IngestServicer,
    PlacementServicer,
    add_IngestServicer_to_server,
    add_PlacementServicer_to_server,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cluster.channels import PeerChannel

CLUSTER: Final = "river"
VERSION: Final = "0.1.0"


class ScriptedIngest(IngestServicer):
    """Append raises the next of ``errors``, waits for ``gate``, and answers; Tail sends three messages."""

    def __init__(self) -> None:
        self.errors: list[Exception] = []
        self.gate: asyncio.Event | None = None
        self.appends: list[pb.AppendRequest] = []
        self.began = asyncio.Event()
        self.cancelled = 0
        self.rows = 3
        self.metadata: dict[str, Any] = {}

    async def Append(self, request: pb.AppendRequest, context: Any) -> pb.AppendReply:
        self.appends.append(request)
        self.metadata = dict(context.invocation_metadata())
        self.began.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.errors:
            raise self.errors.pop(0)
        return pb.AppendReply(position=len(self.appends))

    async def Tail(self, request: pb.TailRequest, context: Any) -> AsyncIterator[pb.TailReply]:
        self.began.set()
        try:
            for number in range(self.rows):
                yield pb.TailReply(head=pb.TailHead(position=number))
            if self.gate is not None:
                await self.gate.wait()
        except (asyncio.CancelledError, GeneratorExit):  # while it waits; while a message is on its way
            self.cancelled += 1
            raise
        if self.errors:
            raise self.errors.pop(0)


def scripted() -> ScriptedIngest:
    """What it does not script stays as generated: not implemented."""
    return ScriptedIngest()  # type: ignore[abstract]


class EndlessPlacement(PlacementServicer):
    """Watch sends one message and goes on for ever."""

    async def Watch(self, request: pb.WatchRequest, context: Any) -> AsyncIterator[pb.WatchReply]:
        yield pb.WatchReply(revision=1)
        await asyncio.Event().wait()


def service(name: str, servicer: Any, register: Callable[[Any, Any], None], **more: Any) -> GrpcService:
    return GrpcService(pb.DESCRIPTOR.services_by_name[name].full_name, servicer, register, **more)


def services(ingest: ScriptedIngest) -> list[GrpcService]:
    return [
        service("Ingest", ingest, add_IngestServicer_to_server),
        service("Placement", EndlessPlacement(), add_PlacementServicer_to_server, endless=frozenset({"Watch"})),
    ]


class Peer:
    """A server that listens, what it serves, and a channel to it."""

    def __init__(self, server: GrpcServer, ingest: ScriptedIngest, channels: Channels) -> None:
        self.server, self.ingest, self.channels = server, ingest, channels

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server.address[1]}"

    @property
    def channel(self) -> PeerChannel:
        return self.channels.channel(self.address)


@contextlib.asynccontextmanager
async def running(ingest: ScriptedIngest | None = None, *, port: int = 0, **more: Any) -> AsyncIterator[Peer]:
    ingest = ingest or scripted()
    more = {"cluster": CLUSTER, "version": VERSION} | more
    channels = Channels(CLUSTER, VERSION, more.get("tls"))
    try:
        async with GrpcServer("127.0.0.1", port, services(ingest), **more) as server:
            yield Peer(server, ingest, channels)
    finally:
        await channels.aclose()
