"""Clients that are slow, lie, stop, or come all at once: a clear answer, bounded memory, and the server goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import socket
import struct

import psutil
import pytest

from nodes.exitcodes import PortTaken
from nodes.gateway.assembly import GatewayLimits
from nodes.gateway.connection import HEAD_BYTES_MAX, URL_BYTES_MAX, ConnectionLimits
from nodes.gateway.http import Limits
from nodes.gateway.server import HttpServer
from tests.harness.gateway import Client, Running, on_loop, running
from tests.harness.memory_backend import MemoryBackend, rows_of

V3 = "/api/v3/write_lp?db=foo"
QUICK = ConnectionLimits(body_seconds=0.3, keep_alive_seconds=0.5)


def head(length: int | str, *more: str) -> bytes:
    lines = [f"POST {V3} HTTP/1.1", "host: t", f"content-length: {length}", *more, "", ""]
    return "\r\n".join(lines).encode()


async def nobody(scope: object, receive: object, send: object) -> None:
    """An application that is never called."""


async def still_serves(gateway: Running) -> None:
    assert (await gateway.call("POST", V3, b"alive v=1 1")).status == 204
    assert (await gateway.call("GET", "/health")).status == 200


@on_loop
async def test_a_body_that_trickles_is_408() -> None:
    async with running(connections=QUICK) as gateway, Client(gateway.port) as client:
        await client.send(head(1000) + b"m v=1 1\n")
        for _ in range(10):
            await asyncio.sleep(0.05)
            with contextlib.suppress(OSError):
                await client.send(b"m")
        answer = await client.answer()
        assert (answer.status, answer.text) == (408, "the request body did not arrive in time")
        assert answer.headers["connection"] == "close"
        assert await client.at_end()
        await still_serves(gateway)
        assert gateway.backend.catalog.table("foo", "m") is None


@on_loop
async def test_a_head_that_trickles_is_408() -> None:
    async with running(connections=QUICK) as gateway, Client(gateway.port) as client:
        await client.send(b"POST /write HTTP/1.1\r\nhost: ")
        answer = await client.answer()
        assert (answer.status, answer.text) == (408, "the request's head did not arrive in time")
        assert await client.at_end()


@on_loop
async def test_a_silent_connection_is_closed() -> None:
    async with running(connections=QUICK) as gateway, Client(gateway.port) as client:
        assert await client.at_end()
        async with Client(gateway.port) as idle:
            assert (await idle.call("GET", "/health")).status == 200
            assert await idle.at_end()


@on_loop
async def test_a_slow_body_in_time_is_written() -> None:
    connections = ConnectionLimits(body_seconds=5)
    async with running(connections=connections) as gateway, Client(gateway.port) as client:
        body = b"m v=1 1\nm v=2 2"
        for byte in head(len(body)) + body:
            await client.send(bytes([byte]))
        assert (await client.answer()).status == 204
        assert (await client.call("GET", "/health")).status == 200
        assert len(rows_of(gateway.backend.table("foo", "m"))) == 2


@on_loop
async def test_a_content_length_that_promises_more() -> None:
    """The client closes its side: nothing of the torn body is written."""
    async with running(connections=QUICK) as gateway:
        async with Client(gateway.port) as client:
            await client.send(head(1000) + b"m v=1 1\nm v=2 2\n")
            client.writer.write_eof()
            assert await client.at_end()
        await still_serves(gateway)
        assert gateway.backend.catalog.table("foo", "m") is None


@on_loop
async def test_a_content_length_that_promises_less() -> None:
    """The first bytes are a request; the rest is none, and the connection ends after the answer."""
    async with running() as gateway, Client(gateway.port) as client:
        await client.send(head(7) + b"m v=1 1\nm v=2 2\nm v=3 3\n")
        first = await client.answer()
        assert first.status in (204, 400)
        assert await client.at_end()
        await still_serves(gateway)


@on_loop
async def test_a_content_length_beyond_the_limit_is_refused_at_once() -> None:
    async with running() as gateway, Client(gateway.port) as client:
        await client.send(head(10_485_761))
        answer = await client.answer()
        assert (answer.status, answer.text) == (413, "max request size (10485760 bytes) exceeded")
        assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("length", ["-1", "abc", "1, 2", "99999999999999999999999", "0x10", ""])
def test_content_lengths_that_are_none(length: str) -> None:
    @on_loop
    async def check() -> None:
        async with running() as gateway, Client(gateway.port) as client:
            await client.send(head(length) + b"m v=1 1")
            assert (await client.answer()).status == 400
            await still_serves(gateway)

    check()


@on_loop
async def test_two_lengths_are_refused() -> None:
    """A request that a proxy and we could read differently is no request."""
    async with running() as gateway:
        for more in ("transfer-encoding: chunked", "content-length: 8"):
            async with Client(gateway.port) as client:
                await client.send(head(7, more) + b"m v=1 1")
                assert (await client.answer()).status == 400


@on_loop
async def test_chunked_bodies() -> None:
    start = f"POST {V3} HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    async with running() as gateway:
        async with Client(gateway.port) as client:
            await client.send(start + b"7\r\nm v=1 1\r\n")
            await asyncio.sleep(0.05)
            await client.send(b"8\r\n\nm v=2 2\r\n0\r\n\r\n")
            assert (await client.answer()).status == 204
            assert len(rows_of(gateway.backend.table("foo", "m"))) == 2
        async with Client(gateway.port) as client:
            await client.send(start + b"7\r\nm v=3 3\r\nzz\r\n")
            answer = await client.answer()
            assert (answer.status, answer.text) == (400, "the request body is broken: its framing cannot be read")
            assert await client.at_end()
        assert len(rows_of(gateway.backend.table("foo", "m"))) == 2


@on_loop
async def test_a_chunked_body_without_end_is_413() -> None:
    limits = GatewayLimits(request=Limits(request_bytes_max=100_000))
    async with running(limits) as gateway, Client(gateway.port) as client:
        await client.send(f"POST {V3} HTTP/1.1\r\nhost: t\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(ConnectionError):
            for _ in range(50):
                await client.send(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
        assert (await client.answer()).status == 413
        await still_serves(gateway)


@on_loop
async def test_a_refused_client_that_goes_on_sending_reads_its_answer() -> None:
    """The rest of the body is read and thrown away, so that no reset eats the answer."""
    async with running() as gateway:
        for path in ("/nope", V3):
            async with Client(gateway.port) as client:
                size = 12_000_000
                request = f"POST {path} HTTP/1.1\r\nhost: t\r\ncontent-length: {size}\r\n\r\n".encode()
                await client.send(request)
                sender = asyncio.create_task(client.send(b"x" * size))
                answer = await client.answer()
                assert answer.status == (404 if path == "/nope" else 413)
                await asyncio.gather(sender, return_exceptions=True)


@on_loop
async def test_expect_continue() -> None:
    async with running() as gateway:
        async with Client(gateway.port) as client:
            await client.send(head(7, "expect: 100-continue"))
            assert await client.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await client.send(b"m v=1 1")
            assert (await client.answer()).status == 204
        async with Client(gateway.port) as client:
            await client.send(head(99_999_999, "expect: 100-continue"))
            assert (await client.answer()).status == 413


@on_loop
async def test_a_gzip_bomb_costs_no_memory() -> None:
    bomb = gzip.compress(bytes(512 * 2**20), 6)
    assert len(bomb) < 2**20
    async with running() as gateway:
        await still_serves(gateway)
        process = psutil.Process()
        before = process.memory_info().rss
        peak = 0

        async def watch() -> None:
            nonlocal peak
            while True:
                peak = max(peak, process.memory_info().rss)
                await asyncio.sleep(0.002)

        watcher = asyncio.create_task(watch())
        answers = await asyncio.gather(
            *(gateway.call("POST", V3, bomb, {"content-encoding": "gzip"}) for _ in range(8))
        )
        watcher.cancel()
        assert [answer.status for answer in answers] == [413] * 8
        assert peak - before < 200 * 2**20, f"{(peak - before) >> 20} MiB"
        await still_serves(gateway)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\x00" * 100,
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /\x01 HTTP/1.1\r\nhost: t\r\n\r\n",
        b"hello\r\n\r\n",
    ],
)
def test_what_is_no_http_is_400(garbage: bytes) -> None:
    @on_loop
    async def check() -> None:
        async with running() as gateway, Client(gateway.port) as client:
            await client.send(garbage)
            answer = await client.answer()
            assert (answer.status, answer.text) == (400, "Invalid HTTP request received.")
            assert await client.at_end()
            await still_serves(gateway)

    check()


@on_loop
async def test_heads_are_bounded() -> None:
    async with running() as gateway:
        for data, status in [
            (b"GET /" + b"a" * (URL_BYTES_MAX + 10) + b" HTTP/1.1\r\nhost: t\r\n\r\n", 414),
            (b"GET / HTTP/1.1\r\n" + b"a: " + b"b" * (HEAD_BYTES_MAX + 10) + b"\r\n\r\n", 431),
            (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * HEAD_BYTES_MAX + b"\r\n", 431),
            (b"GET / HTTP/1.1\r\na: " + b"b" * 3_000_000, 431),
        ]:
            async with Client(gateway.port) as client:
                with contextlib.suppress(ConnectionError):
                    await client.send(data)
                assert (await client.answer()).status == status
        long = "/api/v3/query_sql?db=foo&q=" + "x" * 40_000
        assert (await gateway.call("GET", long)).status == 404
        await still_serves(gateway)


@on_loop
async def test_bodies_behind_bodies_do_not_count_as_heads() -> None:
    """Pipelined: the tail of a big body and the next head arrive in one read."""
    body = b"m v=1 1\n" * 40_000
    async with running() as gateway, Client(gateway.port) as client:
        await client.send((head(len(body)) + body) * 3 + b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n")
        statuses = [(await client.answer()).status for _ in range(4)]
        assert statuses == [204, 204, 204, 200]


@on_loop
async def test_pipelined_requests_are_answered_in_order() -> None:
    async with running() as gateway, Client(gateway.port) as client:
        request = b"GET /health HTTP/1.1\r\nhost: t\r\n\r\n"
        await client.send(head(7) + b"m v=1 1" + request + b"GET /nope HTTP/1.1\r\nhost: t\r\n\r\n" + request)
        assert [(await client.answer()).status for _ in range(4)] == [204, 200, 404, 200]


@on_loop
async def test_two_hundred_connections_at_once() -> None:
    async with running() as gateway, contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(gateway.port)) for _ in range(200)]
        for turn in range(3):
            answers = await asyncio.gather(
                *(client.call("POST", V3, f"m,c={n} v={turn} {turn}".encode()) for n, client in enumerate(clients))
            )
            assert [answer.status for answer in answers] == [204] * 200
        assert gateway.backend.table("foo", "m").num_rows == 600
        assert gateway.metrics.counter("runnel_write_groups", "").of().value < 300


@on_loop
async def test_connections_over_the_limit_are_503() -> None:
    async with (
        running(connections=ConnectionLimits(connections_max=3)) as gateway,
        contextlib.AsyncExitStack() as stack,
    ):
        clients = [await stack.enter_async_context(Client(gateway.port)) for _ in range(3)]
        for client in clients:
            assert (await client.call("GET", "/health")).status == 200
        async with Client(gateway.port) as extra:
            answer = await extra.answer()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert await extra.at_end()
        assert (await clients[0].call("GET", "/health")).status == 200


@on_loop
async def test_a_client_that_resets_loses_nothing_for_others() -> None:
    backend = MemoryBackend()
    backend.write_seconds = 0.1
    async with running(backend=backend) as gateway:
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", gateway.port)) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.sendall(head(7) + b"m v=1 1")
        await still_serves(gateway)
        while gateway.server.connections:
            await asyncio.sleep(0.01)
        text = (await gateway.call("GET", "/metrics")).text
        assert "runnel_waiting_bytes 0.0" in text


@on_loop
async def test_an_upgrade_is_served_as_plain_http() -> None:
    async with running() as gateway, Client(gateway.port) as client:
        answer = await client.call("GET", "/health", headers={"connection": "Upgrade", "upgrade": "websocket"})
        assert answer.status == 200
        assert await client.at_end()


@on_loop
async def test_stopping_lets_requests_finish() -> None:
    backend = MemoryBackend()
    async with running(backend=backend) as gateway, Client(gateway.port) as busy, Client(gateway.port) as idle:
        assert (await idle.call("GET", "/health")).status == 200
        await busy.call("POST", V3, b"m v=0 0")
        backend.write_seconds = 0.3
        await busy.send(head(7) + b"m v=1 1")
        while gateway.metrics.text().count(b"http_requests_in_flight 0.0"):
            await asyncio.sleep(0.01)
        await gateway.server.drain(5.0)
        answer = await busy.answer()
        assert (answer.status, answer.headers["connection"]) == (204, "close")
        assert await idle.at_end()
        with pytest.raises(OSError):
            await Client(gateway.port).__aenter__()
    assert len(rows_of(backend.table("foo", "m"))) == 2


@on_loop
async def test_stopping_has_a_deadline() -> None:
    backend = MemoryBackend()
    async with running(backend=backend) as gateway, Client(gateway.port) as stuck, Client(gateway.port) as torn:
        await stuck.call("POST", V3, b"m v=0 0")
        backend.write_seconds = 30
        await stuck.send(head(7) + b"m v=1 1")
        await torn.send(b"POST /wri")
        await asyncio.sleep(0.05)
        loop = asyncio.get_running_loop()
        started = loop.time()
        await gateway.server.drain(0.2)
        assert loop.time() - started < 2
        assert gateway.server.connections == 0
        await gateway.server.drain(0.2)


@on_loop
async def test_a_taken_port_is_named() -> None:
    async with running() as gateway:
        other = HttpServer(nobody, port=gateway.port)
        with pytest.raises(PortTaken, match=f"another process listens on 127.0.0.1:{gateway.port}"):
            await other.start()
        await other.stop()
        with pytest.raises(RuntimeError):
            _ = other.address
