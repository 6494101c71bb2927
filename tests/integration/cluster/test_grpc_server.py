"""The server of the plumbing on real sockets: who may call, what errors become, health, limits, and its end."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import structlog
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.channels import MESSAGE_BYTES_MAX, Channels
from cluster.errors import ClusterDenied, ClusterError, PeerUnavailable
from nodes.exitcodes import PortTaken
from nodes.grpcserver import REQUEST_ID_KEY, GrpcServer, versions_fit
from nodes.rpcerrors import peer_errors
from protos import internal_pb2 as pb
from protos.internal_pb2_grpc import IngestStub, PlacementStub
from storage.errors import Fenced, MemoryExhausted, OutcomeUnknown, RequestTooLarge, SchemaConflict, StorageError
from tests.harness.gateway import on_loop
from tests.harness.grpcpeer import CLUSTER, VERSION, running, scripted, services

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

APPEND = pb.AppendRequest(shard=1)
SECONDS = 10.0


async def read_all(call: Any, into: list[pb.TailReply]) -> None:
    async for message in call:
        into.append(message)


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


@on_loop
async def test_a_peer_of_the_cluster_is_served() -> None:
    async with running() as peer:
        reply = await peer.channel.stub(IngestStub).Append(APPEND, timeout=SECONDS)
        assert reply.position == 1
        assert peer.ingest.metadata["runnel-cluster"] == CLUSTER
        assert peer.ingest.metadata["runnel-version"] == VERSION
        tail = peer.channel.stub(IngestStub).Tail(pb.TailRequest(), timeout=SECONDS)
        assert [message.head.position async for message in tail] == [0, 1, 2]


@on_loop
async def test_errors_arrive_as_the_same_class() -> None:
    async with running() as peer:
        stub = peer.channel.stub(IngestStub)
        for error in (Fenced("another owner"), SchemaConflict("no"), MemoryExhausted("full")):
            peer.ingest.errors.append(error)
            with pytest.raises(type(error), match=str(error)), peer_errors("n1", is_write=True):
                await stub.Append(APPEND, timeout=SECONDS)
        peer.ingest.errors.append(Fenced("in the middle"))
        got: list[pb.TailReply] = []
        with pytest.raises(Fenced, match="in the middle"), peer_errors("n1"):
            await read_all(stub.Tail(pb.TailRequest(), timeout=SECONDS), got)
        assert len(got) == 3


@on_loop
async def test_a_fault_is_logged_once_and_not_told() -> None:
    async with running() as peer:
        stub = peer.channel.stub(IngestStub)
        with structlog.testing.capture_logs() as lines:
            peer.ingest.errors += [ValueError("password=hunter2"), ValueError("password=hunter2")]
            with pytest.raises(OutcomeUnknown) as write, peer_errors("n1", is_write=True):
                await stub.Append(APPEND, timeout=SECONDS, metadata=((REQUEST_ID_KEY, "abc"),))
            with pytest.raises(StorageError) as read, peer_errors("n1"):
                await read_all(stub.Tail(pb.TailRequest(), timeout=SECONDS), [])
        assert "hunter2" not in f"{write.value}{read.value}"
        assert "abc" in str(write.value)
        faults = [line for line in lines if line["log_level"] == "error"]
        assert [line["method"] for line in faults] == ["/runnel.v1.Ingest/Append", "/runnel.v1.Ingest/Tail"]
        assert all(isinstance(line["exc_info"], ValueError) for line in faults)


@on_loop
async def test_a_method_that_nobody_wrote_is_unimplemented() -> None:
    async with running() as peer:
        with pytest.raises(aio.AioRpcError) as caught:
            await peer.channel.stub(IngestStub).Drop(pb.DropRequest(), timeout=SECONDS)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        with pytest.raises(ClusterError, match="another kind"), peer_errors("n1"):
            await peer.channel.stub(IngestStub).Drop(pb.DropRequest(), timeout=SECONDS)


@pytest.mark.parametrize(
    ("cluster", "version", "status"),
    [
        ("pond", VERSION, grpc.StatusCode.PERMISSION_DENIED),
        (CLUSTER, "0.2.0", grpc.StatusCode.FAILED_PRECONDITION),
        (CLUSTER, "1.0", grpc.StatusCode.FAILED_PRECONDITION),
    ],
)
@on_loop
async def test_others_are_refused(cluster: str, version: str, status: grpc.StatusCode) -> None:
    async with running() as peer:
        others = Channels(cluster, version)
        try:
            stub = others.channel(peer.address).stub(IngestStub)
            with structlog.testing.capture_logs() as lines:
                with pytest.raises(aio.AioRpcError) as caught:
                    await stub.Append(APPEND, timeout=SECONDS)
                assert caught.value.code() is status
                with pytest.raises(ClusterDenied, match="the caller"), peer_errors("n1", is_write=True):
                    await stub.Append(APPEND, timeout=SECONDS)
                with pytest.raises(ClusterDenied), peer_errors("n1"):
                    await read_all(stub.Tail(pb.TailRequest(), timeout=SECONDS), [])
            assert {line["event"] for line in lines} == {"a caller was refused"}
            assert peer.ingest.appends == []
        finally:
            await others.aclose()


@on_loop
async def test_a_caller_that_names_no_cluster_is_refused() -> None:
    async with running() as peer, aio.insecure_channel(peer.address) as channel:
        with pytest.raises(aio.AioRpcError, match="nodes of the cluster only"):
            await IngestStub(channel).Append(APPEND, timeout=SECONDS)


def test_which_versions_fit() -> None:
    assert versions_fit("0.1.0", "0.1.7")
    assert versions_fit("1.2.3", "1.9")
    assert not versions_fit("0.1.0", "0.2.0")
    assert not versions_fit("1.0", "2.0")
    assert not versions_fit("1.0", "")


@on_loop
async def test_health_and_reflection_answer_anyone() -> None:
    async with running() as peer, aio.insecure_channel(peer.address) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        serving: Any = health_pb2.HealthCheckResponse
        for name in ("", "runnel.v1.Ingest"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=SECONDS)
            assert answer.status == serving.NOT_SERVING
        await peer.server.set_serving(True)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        assert answer.status == serving.SERVING
        assert await reflected(channel) == {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def reflected(channel: aio.Channel) -> set[str]:
    def ask() -> Iterable[reflection_pb2.ServerReflectionRequest]:
        yield reflection_pb2.ServerReflectionRequest(list_services="")

    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
    call = stub.ServerReflectionInfo(ask(), timeout=SECONDS)
    async for answer in call:
        return {one.name for one in answer.list_services_response.service}
    return set()


@on_loop
async def test_a_taken_port_is_said_so() -> None:
    async with running() as peer:
        with pytest.raises(PortTaken, match="Address already in use"):
            async with running(port=peer.server.address[1]):
                pass
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(PortTaken):
        async with running(port=taken.getsockname()[1]):
            pass
    for host in ("no.such.host.invalid", "192.0.2.1"):
        with pytest.raises(PortTaken):
            async with GrpcServer(host, 0, []):
                pass


@on_loop
async def test_a_huge_message_is_refused() -> None:
    async with running(message_bytes_max=1 << 20) as peer:
        stub = peer.channel.stub(IngestStub)
        large = pb.AppendRequest(parts=[pb.AppendPart(frame=bytes(2 << 20))])
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Append(large, timeout=SECONDS)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        too_large = pb.AppendRequest(parts=[pb.AppendPart(frame=bytes(MESSAGE_BYTES_MAX + 1))])
        with pytest.raises(RequestTooLarge), peer_errors("n1", is_write=True):
            await stub.Append(too_large, timeout=SECONDS)
        assert peer.ingest.appends == []
        assert (await stub.Append(APPEND, timeout=SECONDS)).position == 1


@on_loop
async def test_a_compressed_message_is_refused_before_it_inflates() -> None:
    async with running() as peer:
        stub = peer.channel.stub(IngestStub)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Append(
                pb.AppendRequest(parts=[pb.AppendPart(frame=bytes(1 << 20))]),
                timeout=SECONDS,
                compression=grpc.Compression.Gzip,
            )
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert peer.ingest.appends == []


@on_loop
async def test_more_calls_than_the_limit_are_turned_away() -> None:
    async with running(rpcs_max=2) as peer:
        peer.ingest.gate = asyncio.Event()
        stub = peer.channel.stub(IngestStub)
        held = [asyncio.ensure_future(hold(stub)) for _ in range(2)]
        await until(lambda: len(peer.ingest.appends) == 2)
        with pytest.raises(PeerUnavailable, match="Concurrent RPC limit"), peer_errors("n1", is_write=True):
            await stub.Append(APPEND, timeout=SECONDS)
        peer.ingest.gate.set()
        await asyncio.gather(*held)


async def hold(stub: Any) -> object:
    with peer_errors("n1", is_write=True):
        return await stub.Append(APPEND, timeout=SECONDS)


@on_loop
async def test_a_drain_waits_for_calls_and_not_for_watches() -> None:
    async with running() as peer, aio.insecure_channel(peer.address) as plain:
        peer.ingest.gate = asyncio.Event()
        watch: Any = peer.channel.stub(PlacementStub).Watch(pb.WatchRequest(), timeout=SECONDS)
        assert (await watch.read()).revision == 1
        health: Any = health_pb2_grpc.HealthStub(plain)
        await health.Watch(health_pb2.HealthCheckRequest(), timeout=SECONDS).read()
        held = asyncio.ensure_future(hold(peer.channel.stub(IngestStub)))
        await peer.ingest.began.wait()
        assert peer.server.in_flight == 1
        draining = asyncio.ensure_future(peer.server.drain(SECONDS))
        await asyncio.sleep(0.1)
        assert not draining.done()
        with pytest.raises(PeerUnavailable, match="stops"):
            await hold(peer.channel.stub(IngestStub))
        with pytest.raises(PeerUnavailable, match="stops"), peer_errors("n1"):
            await watch.read()
        peer.ingest.gate.set()
        await held
        async with asyncio.timeout(2):
            await draining


@on_loop
async def test_a_drain_cuts_off_what_does_not_end() -> None:
    async with running() as peer:
        peer.ingest.gate = asyncio.Event()
        held = asyncio.ensure_future(hold(peer.channel.stub(IngestStub)))
        await peer.ingest.began.wait()
        async with asyncio.timeout(5):
            await peer.server.drain(0.2)
        with pytest.raises(OutcomeUnknown):
            await held
        assert peer.ingest.cancelled == 1
        await peer.server.drain(1)


@on_loop
async def test_a_caller_that_leaves_cancels_its_stream() -> None:
    async with running() as peer:
        peer.ingest.gate = asyncio.Event()
        call = peer.channel.stub(IngestStub).Tail(pb.TailRequest(), timeout=SECONDS)
        await call.read()
        call.cancel()
        await until(lambda: peer.ingest.cancelled == 1)
        await until(lambda: peer.server.in_flight == 0)


@on_loop
async def test_the_address_is_known_only_while_it_listens() -> None:
    server = GrpcServer("127.0.0.1", 0, services(scripted()), cluster=CLUSTER, version=VERSION)
    with pytest.raises(RuntimeError):
        _ = server.address
    async with server:
        assert server.address[1] > 0
