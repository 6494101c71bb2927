"""The HTTP server in the node's own event loop: listening sockets, the date header, and an orderly end.

uvicorn's protocol does HTTP; its Server class is not used, because signals, the loop and the end of the process
are the node's. Driven by `nodes.node` (``async with HttpServer(...)``) and by tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Final, Self

from uvicorn.config import Config
from uvicorn.server import ServerState

from nodes.exitcodes import PortTaken
from nodes.gateway.connection import Connection, ConnectionLimits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

BACKLOG: Final = 2048
"""Connections the kernel holds until the loop accepts them."""
DRAIN_SECONDS_DEFAULT: Final = 30.0
POLL_SECONDS: Final = 0.02
CANCEL_SECONDS: Final = 1.0
"""After the deadline: how long cancelled requests may take to let go."""


class HttpServer:
    """Serves one ASGI application. `start` binds and accepts; `stop` drains and is idempotent."""

    def __init__(
        self,
        app: Callable[..., Awaitable[None]],
        *,
        host: str = "127.0.0.1",
        port: int = 8181,
        limits: ConnectionLimits | None = None,
        drain_seconds: float = DRAIN_SECONDS_DEFAULT,
    ) -> None:
        self.limits = limits or ConnectionLimits()
        self._app = app
        self._host, self._port = host, port
        self._drain_seconds = drain_seconds
        self._state = ServerState()
        self._server: asyncio.Server | None = None
        self._address: tuple[str, int] | None = None
        self._clock: asyncio.TimerHandle | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: the bound port if 0 was asked for. RuntimeError before `start`."""
        if self._address is None:
            raise RuntimeError("the HTTP server does not listen")
        return self._address

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._state.connections)

    async def start(self) -> None:
        """Bind and accept. PortTaken if another process listens there; OSError for what else is wrong."""
        loop = asyncio.get_running_loop()
        config = _uvicorn_config(self._app)
        self._tick()
        try:
            self._server = await loop.create_server(
                lambda: Connection(config, self._state, self.limits, loop),
                host=self._host,
                port=self._port,
                family=socket.AF_UNSPEC,
                backlog=BACKLOG,
            )
        except OSError as error:
            self._stop_clock()
            if error.errno == errno.EADDRINUSE:
                raise PortTaken(
                    f"another process listens on {self._host}:{self._port}; stop it or choose another http.listen"
                ) from error
            raise
        self._address = self._server.sockets[0].getsockname()[:2]

    async def stop(self, deadline_seconds: float | None = None) -> None:
        """Accept no more, let requests under way finish, then cut off what is left at the deadline."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._drain_seconds if deadline_seconds is None else deadline_seconds)
        while self._connections():
            for connection in self._connections():
                connection.shutdown()
            if loop.time() >= deadline:
                break
            await asyncio.sleep(POLL_SECONDS)
        await self._cut_off()
        await server.wait_closed()
        self._stop_clock()

    async def drain(self, seconds: float) -> None:
        """As the node calls it: `stop` with its deadline."""
        await self.stop(seconds)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _connections(self) -> list[Connection]:
        return [c for c in self._state.connections if isinstance(c, Connection)]

    async def _cut_off(self) -> None:
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_SECONDS)
        for connection in self._connections():
            connection.transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_SECONDS):
                while self._state.connections:
                    await asyncio.sleep(0)

    def _tick(self) -> None:
        """Once a second: the date header that every response shares."""
        self._state.default_headers = [(b"date", formatdate(time.time(), usegmt=True).encode("ascii"))]
        self._clock = asyncio.get_running_loop().call_later(1.0, self._tick)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def _uvicorn_config(app: Callable[..., Any]) -> Config:
    """uvicorn's settings for one protocol instance: no logging, lifespan, proxies or WebSockets of its own."""
    config = Config(
        app,
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    config.load()
    return config
