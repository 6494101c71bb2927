"""A proxy for TCP or UDP in a thread of its own that delays, cuts, leaves half open and resets what passes.

Driven by tests that cannot use namespaces, and before stores that are reached by HTTP. The switches may be turned
from any thread at any moment: ``latency_seconds`` (each way), ``cut_up`` (towards the server), ``cut_down`` (towards
the client), `reset` (end all connections by RST), ``refuse`` (accept nothing). Cut bytes of TCP are held and pass
when it is healed, as after lost packets; cut datagrams are gone. ``counts`` says what really happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any, Final, Self, cast

if TYPE_CHECKING:
    from collections.abc import Coroutine

CHUNK_BYTES: Final = 1 << 16
POLL_SECONDS: Final = 0.005
START_SECONDS_MAX: Final = 10.0


class FaultProxy:
    """Listens on a free port of 127.0.0.1 for one target. ``udp``: datagrams instead of streams."""

    def __init__(self, host: str, port: int, *, udp: bool = False) -> None:
        self.target = (host, port)
        self.udp = udp
        self.port = 0
        self.latency_seconds = 0.0
        self.cut_up = False
        self.cut_down = False
        self.refuse = False
        self.counts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ready = threading.Event()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._front: asyncio.DatagramTransport | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_SECONDS_MAX), "the proxy did not start"
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_SECONDS_MAX)
        self._loop.close()

    def heal(self) -> None:
        """Everything passes again."""
        self.latency_seconds = 0.0
        self.cut_up = self.cut_down = self.refuse = False

    def cut(self) -> None:
        """Nothing passes, either way; connections stay open."""
        self.cut_up = self.cut_down = True

    def reset(self) -> None:
        """End every connection by RST."""
        self._call(self._reset())

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(START_SECONDS_MAX)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._begin())
        self._ready.set()
        self._loop.run_forever()

    async def _begin(self) -> None:
        if self.udp:
            self._front, _ = await self._loop.create_datagram_endpoint(
                lambda: _Front(self), local_addr=("127.0.0.1", 0)
            )
            self.port = self._front.get_extra_info("sockname")[1]
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._front is not None:
            self._front.close()
        await self._reset()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _reset(self) -> None:
        for writer in list(self._writers):
            link = writer.get_extra_info("socket")
            if link is not None:
                with contextlib.suppress(OSError):
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            self.counts["reset"] += 1

    # -- TCP --------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            self.counts["refused"] += 1
            return
        while self.cut_up or self.cut_down:  # no SYN comes through
            await asyncio.sleep(POLL_SECONDS)
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        self._writers.add(far_writer)
        self.counts["connections"] += 1
        ways = [self._pump(reader, far_writer, "up"), self._pump(far_reader, writer, "down")]
        try:
            await asyncio.gather(*ways)
        finally:
            far_writer.transport.abort()
            self._writers.discard(far_writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str) -> None:
        while data := await reader.read(CHUNK_BYTES):
            if self.latency_seconds:
                self.counts["delayed"] += 1
                await asyncio.sleep(self.latency_seconds)
            if self._is_cut(way):
                self.counts[f"held {way}"] += 1
            while self._is_cut(way):
                await asyncio.sleep(POLL_SECONDS)
            writer.write(data)
            await writer.drain()
            self.counts[f"bytes {way}"] += len(data)
        while self._is_cut(way):
            await asyncio.sleep(POLL_SECONDS)
        with contextlib.suppress(OSError):
            writer.write_eof()

    def _is_cut(self, way: str) -> bool:
        return self.cut_up if way == "up" else self.cut_down


class _Front(asyncio.DatagramProtocol):
    """Clients' side: one socket towards the target for each client address."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy
        self.transport: asyncio.DatagramTransport | None = None
        self.backs: dict[Any, asyncio.DatagramTransport] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        for back in self.backs.values():
            back.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        task = asyncio.ensure_future(self._forward(data, addr))
        self.proxy._tasks.add(task)
        task.add_done_callback(self.proxy._tasks.discard)

    async def _forward(self, data: bytes, client: Any) -> None:
        proxy = self.proxy
        if proxy.latency_seconds:
            proxy.counts["delayed"] += 1
            await asyncio.sleep(proxy.latency_seconds)
        if proxy.cut_up:
            proxy.counts["lost up"] += 1
            return
        if client not in self.backs:
            back, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Back(self, client), remote_addr=proxy.target
            )
            self.backs[client] = back
        self.backs[client].sendto(data)
        proxy.counts["bytes up"] += len(data)


class _Back(asyncio.DatagramProtocol):
    """The target's side of one client."""

    def __init__(self, front: _Front, client: Any) -> None:
        self.front, self.client = front, client

    def datagram_received(self, data: bytes, addr: Any) -> None:
        proxy = self.front.proxy
        if proxy.cut_down:
            proxy.counts["lost down"] += 1
            return
        if proxy.latency_seconds:
            proxy.counts["delayed"] += 1
        asyncio.get_running_loop().call_later(proxy.latency_seconds, self._answer, data)

    def error_received(self, exc: Exception) -> None:
        self.front.proxy.counts["refused"] += 1

    def _answer(self, data: bytes) -> None:
        if self.front.transport is not None and not self.front.transport.is_closing():
            self.front.transport.sendto(data, self.client)
            self.front.proxy.counts["bytes down"] += len(data)
