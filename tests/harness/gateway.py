"""A gateway on a real socket over the in-memory Backend, and raw HTTP against it. For tests of the doors."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import uvloop

from nodes.gateway.assembly import GatewayLimits, GatewayParts, open_server
from nodes.health import Health, Phase
from nodes.metrics import Metrics
from tests.harness.memory_backend import MemoryBackend, encode
from wire.lineprotocol.model import LineParser, ParserLimits
from wire.lineprotocol.reference import ReferenceParser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from nodes.gateway.assembly import GatewayServer, GrpcListen
    from nodes.gateway.connection import ConnectionLimits


@dataclass
class Running:
    """A gateway that listens, and what is behind it."""

    server: GatewayServer
    backend: MemoryBackend
    health: Health
    metrics: Metrics

    @property
    def port(self) -> int:
        return self.server.address[1]

    async def call(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """One request on its own connection."""
        async with Client(self.port) as client:
            return await client.call(method, path, body, headers)


def reference_parser() -> LineParser:
    """The parser without a compiler: quick to start."""
    return ReferenceParser(ParserLimits())


@contextlib.asynccontextmanager
async def running(
    limits: GatewayLimits | None = None,
    connections: ConnectionLimits | None = None,
    backend: MemoryBackend | None = None,
    make_parser: Callable[[], LineParser] = reference_parser,
    phase: Phase = Phase.READY,
    grpc: GrpcListen | None = None,
) -> AsyncIterator[Running]:
    backend = backend or MemoryBackend()
    health, metrics = Health(), Metrics(process=False)
    health.move(phase)
    parts = GatewayParts(backend, health, metrics, make_parser, encode, revision="test")
    async with open_server(parts, limits, connections=connections, drain_seconds=2.0, grpc=grpc) as server:
        yield Running(server, backend, health, metrics)


@dataclass
class Answer:
    """A response as it came; ``is_whole`` says that its end came too."""

    status: int
    headers: dict[str, str]
    body: bytes = b""
    is_whole: bool = True
    raw_headers: list[tuple[str, str]] = field(default_factory=list)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection that sends and reads bytes as they are told; knows nothing of what is right."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def __aenter__(self) -> Self:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def call(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        given = {"host": "test", **(headers or {})}
        if body or method in ("POST", "PUT"):
            given.setdefault("content-length", str(len(body)))
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in given.items()) + "\r\n"
        await self.send(head.encode("latin-1") + body)
        return await self.answer(has_body=method != "HEAD")

    async def send(self, data: bytes) -> None:
        try:
            self.writer.write(data)
            await self.writer.drain()
        except RuntimeError as error:  # uvloop's word for a connection that the server has closed
            raise ConnectionResetError(str(error)) from error

    async def answer(self, has_body: bool = True) -> Answer:
        """The next response. EOFError if the connection ends before a head came."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        pairs = [
            (name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines[1:] if line)
        ]
        answer = Answer(int(lines[0].split()[1]), dict(pairs), raw_headers=pairs)
        if answer.status == 204 or not has_body:
            return answer
        if answer.headers.get("transfer-encoding") == "chunked":
            answer.body, answer.is_whole = await self._chunks()
        else:
            answer.body = await self.reader.readexactly(int(answer.headers.get("content-length", "0")))
        return answer

    async def at_end(self) -> bool:
        """The server has closed its side."""
        return await self.reader.read(1) == b""

    async def _chunks(self) -> tuple[bytes, bool]:
        parts: list[bytes] = []
        while True:
            try:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                data = await self.reader.readexactly(size + 2)
            except (asyncio.IncompleteReadError, ConnectionError):
                return b"".join(parts), False
            if not size:
                return b"".join(parts), True
            parts.append(data[:-2])


def on_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run an async test on a uvloop of its own, as the server runs; a minute at most."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        async def bounded() -> None:
            async with asyncio.timeout(60):
                await test(*args, **kwargs)

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(bounded())

    return run
