"""Channels on real sockets: TLS both ways, new certificates while running, restarts, and what was never sent."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import structlog
from grpc import aio

from cluster.certificates import make_certificates
from cluster.channels import Channels, target
from cluster.errors import ClusterMisconfigured, PeerUnavailable
from cluster.tlsfiles import NODE_NAME, TlsFiles, TlsSource, channel_credentials, load
from nodes.rpcerrors import is_not_sent, peer_errors
from protos import internal_pb2 as pb
from protos.internal_pb2_grpc import IngestStub
from storage.errors import OutcomeUnknown
from tests.harness.gateway import on_loop
from tests.harness.grpcpeer import CLUSTER, VERSION, running

if TYPE_CHECKING:
    from pathlib import Path

APPEND = pb.AppendRequest(shard=1)
SECONDS = 10.0


async def append(channel: aio.Channel, seconds: float = SECONDS) -> int:
    stub: Any = IngestStub(channel)
    with peer_errors("n1", is_write=True):
        return int((await stub.Append(APPEND, timeout=seconds)).position)


def instant(files: TlsFiles) -> TlsSource:
    """Looks at the files at each use."""
    return TlsSource(files, check_seconds=0)


@on_loop
async def test_one_channel_for_an_address_until_it_is_forgotten() -> None:
    async with running() as peer:
        first = peer.channel
        assert peer.channel is first
        assert first.stub(IngestStub) is first.stub(IngestStub)
        assert await append(first) == 1
        peer.channels.forget(peer.address)
        peer.channels.forget("127.0.0.1:1")
        assert peer.channel is not first
        assert await append(peer.channel) == 2
        await peer.channels.aclose()
        await peer.channels.aclose()
        with pytest.raises(RuntimeError):
            _ = peer.channel


@on_loop
async def test_calls_on_a_forgotten_channel_end_by_themselves() -> None:
    async with running() as peer:
        peer.ingest.gate = asyncio.Event()
        held = asyncio.ensure_future(append(peer.channel))
        await peer.ingest.began.wait()
        peer.channels.forget(peer.address)
        await asyncio.sleep(0.05)
        peer.ingest.gate.set()
        assert await held == 1


@on_loop
async def test_nobody_listens_is_certainly_not_sent() -> None:
    async with running() as peer:
        address = peer.address
    channels = Channels(CLUSTER, VERSION)
    try:
        stub = channels.channel(address).stub(IngestStub)
        with pytest.raises(aio.AioRpcError) as caught:
            await stub.Append(APPEND, timeout=SECONDS)
        assert is_not_sent(caught.value)
        with pytest.raises(PeerUnavailable):
            await append(channels.channel("no.such.host.invalid:1"))
    finally:
        await channels.aclose()


@on_loop
async def test_a_lost_answer_is_unknown() -> None:
    async with running() as peer:
        peer.ingest.gate = asyncio.Event()
        with pytest.raises(OutcomeUnknown):
            await append(peer.channel, 0.1)
        assert len(peer.ingest.appends) == 1


@on_loop
async def test_a_restarted_peer_is_reached_within_a_second_or_so() -> None:
    channels = Channels(CLUSTER, VERSION)
    try:
        async with running() as peer:
            port = peer.server.address[1]
            await append(channels.channel(peer.address))
        address = f"127.0.0.1:{port}"
        down = time.monotonic()
        while time.monotonic() - down < 3:  # long enough for any back-off to be at its longest
            with pytest.raises((PeerUnavailable, OutcomeUnknown)):
                await append(channels.channel(address))
            await asyncio.sleep(0.05)
        async with running(port=port):
            up = time.monotonic()
            while True:
                try:
                    await append(channels.channel(address))
                except PeerUnavailable:
                    assert time.monotonic() - up < 2.5
                    await asyncio.sleep(0.02)
                else:
                    break
    finally:
        await channels.aclose()


@on_loop
async def test_both_sides_show_a_certificate(tmp_path: Path) -> None:
    source = instant(make_certificates(tmp_path, [], "n1"))
    async with running(tls=source) as peer:
        assert await append(peer.channel) == 1
        with structlog.testing.capture_logs():
            for channel in (plaintext(peer.address), without_certificate(peer.address, source)):
                async with channel:
                    with pytest.raises(PeerUnavailable):
                        await append(channel, 3)
        assert len(peer.ingest.appends) == 1


def plaintext(address: str) -> aio.Channel:
    return aio.insecure_channel(address)


def without_certificate(address: str, source: TlsSource) -> aio.Channel:
    credentials = grpc.ssl_channel_credentials(source.current()[1].ca)
    return aio.secure_channel(address, credentials, [("grpc.ssl_target_name_override", NODE_NAME)])


@on_loop
async def test_another_ca_is_refused_by_both(tmp_path: Path) -> None:
    ours, theirs = make_certificates(tmp_path / "a"), make_certificates(tmp_path / "b")
    async with running(tls=instant(ours)) as peer:
        stranger = Channels(CLUSTER, VERSION, instant(theirs))
        mixed = TlsFiles(ca=ours.ca, cert=theirs.cert, key=theirs.key)  # trusts the server, is not trusted
        intruder = Channels(CLUSTER, VERSION, instant(mixed))
        try:
            for channels in (stranger, intruder):
                with pytest.raises((PeerUnavailable, OutcomeUnknown)):
                    await append(channels.channel(peer.address), 3)
            assert peer.ingest.appends == []
        finally:
            await stranger.aclose()
            await intruder.aclose()


@on_loop
async def test_new_certificates_are_taken_while_running(tmp_path: Path) -> None:
    files = make_certificates(tmp_path / "live")
    fresh = make_certificates(tmp_path / "fresh")
    source = instant(files)
    async with running(tls=source) as peer:
        first = peer.channel
        assert await append(first) == 1
        for part in ("ca", "cert", "key"):
            shutil.copyfile(getattr(fresh, part), getattr(files, part))
        assert peer.channel is not first
        assert await append(peer.channel) == 2
        outsider = aio.secure_channel(
            peer.address, channel_credentials(load(fresh)), [("grpc.ssl_target_name_override", NODE_NAME)]
        )
        async with outsider:
            with pytest.raises(aio.AioRpcError) as caught:
                await IngestStub(outsider).Append(APPEND, timeout=SECONDS)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED, "the handshake is right, the name missing"


def test_targets() -> None:
    assert target("127.0.0.1:80") == "dns:///127.0.0.1:80"
    assert target("[::1]:80") == "dns:///[::1]:80"
    assert target("node-1.svc:50051") == "dns:///node-1.svc:50051"


@pytest.mark.parametrize(
    "address",
    ["", "a", "a:", ":1", "::1:80", "unix:/tmp/x", "unix:///tmp/x:1", "xds:///a:1", "a/b:1", "a:b:1", "[a]:1", "ä:1"],
)
def test_what_is_no_target(address: str) -> None:
    with pytest.raises(ClusterMisconfigured):
        target(address)


@pytest.mark.parametrize("name", ["", " a", "ä", "a\n"])
def test_what_cannot_name_a_cluster(name: str) -> None:
    with pytest.raises(ClusterMisconfigured):
        Channels(name, VERSION)
