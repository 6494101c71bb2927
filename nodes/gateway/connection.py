"""One HTTP connection: uvicorn's httptools protocol with the limits it lacks.

It bounds the head of a request, the time until head and body are here, and the time a client may leave
its response lying; it answers nothing twice; and it lets a refused client read its answer before the connection
closes. Driven by the event loop, made by `nodes.gateway.server` for each accepted socket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from nodes.gateway.http import CLOSE

if TYPE_CHECKING:
    import asyncio

    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from nodes.gateway.http import Receive

URL_BYTES_MAX: Final = 64 * 1024
"""A query may stand in the URL; more goes into a POST body."""
HEAD_BYTES_MAX: Final = 128 * 1024
"""URL and headers together."""
BODY_WAITING_BYTES: Final = 256 * 1024
"""So much of a body waits for its reader, then the socket is read no further."""
LINGER_SECONDS: Final = 2.0
LINGER_BYTES_MAX: Final = 64 * 2**20
"""How long, and for how many bytes, a client that was refused in mid-body may go on sending before it is cut
off: closing at once would make the kernel throw our answer away (RST)."""

REFUSALS: Final[dict[int, bytes]] = {
    400: b"Bad Request",
    408: b"Request Timeout",
    414: b"URI Too Long",
    431: b"Request Header Fields Too Large",
    503: b"Service Unavailable",
}
REFUSAL: Final = (
    b"HTTP/1.1 %d %s\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n%s\r\n"
)


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Seconds and counts for one server's connections (settings ``http.*``)."""

    connections_max: int = 4096
    body_seconds: float = 30.0
    keep_alive_seconds: float = 75.0


class CycleExchange:
    """`nodes.gateway.http.Exchange` for one request on one connection."""

    __slots__ = ("_connection", "_cycle", "_pieces", "_waiting_bytes", "is_body_broken", "is_body_slow")

    def __init__(self, connection: Connection, cycle: RequestResponseCycle) -> None:
        self._connection = connection
        self._cycle = cycle
        self._pieces: list[bytes] = []
        self._waiting_bytes = 0
        self.is_body_slow = False
        self.is_body_broken = False

    @property
    def is_gone(self) -> bool:
        return self._cycle.disconnected

    @property
    def is_send_paused(self) -> bool:
        return self._connection.flow.write_paused

    @property
    def is_body_whole(self) -> bool:
        return not self._cycle.more_body

    def add(self, piece: bytes) -> None:
        """A piece of the body has come. The reader is woken at its end, or when enough waits to stop reading.

        Uvicorn's own way wakes it for each piece and copies each byte three times; without that a million lines in
        large bodies were acknowledged for 1.60 CPU seconds instead of 1.86.
        """
        self._pieces.append(piece)
        self._waiting_bytes += len(piece)
        if self._waiting_bytes > BODY_WAITING_BYTES:
            self._connection.flow.pause_reading()
            self._cycle.message_event.set()

    async def arrival(self, receive: Receive) -> list[bytes] | None:
        """See `nodes.gateway.http.Exchange`. ``receive`` is not needed here."""
        cycle = self._cycle
        if cycle.waiting_for_100_continue and not cycle.transport.is_closing():
            cycle.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            cycle.waiting_for_100_continue = False
        if not cycle.disconnected and not cycle.response_complete:
            self._connection.flow.resume_reading()
            await cycle.message_event.wait()
            cycle.message_event.clear()
        if cycle.disconnected or cycle.response_complete:
            return None
        pieces, self._pieces, self._waiting_bytes = self._pieces, [], 0
        return pieces

    def respond(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> bool:
        """Write a whole response in one call, without ASGI's messages: a third of what a small request costs.

        False if it cannot be done now (the client is behind with an earlier response): send it the slow way.
        ``headers`` come from us alone, so they are not checked again.
        """
        cycle = self._cycle
        if cycle.response_started or self._connection.flow.write_paused:
            return False
        if not cycle.disconnected:
            cycle.response_started = cycle.response_complete = True
            if CLOSE in headers:
                cycle.keep_alive = False
            elif not cycle.keep_alive:
                headers = [*headers, CLOSE]
            parts = [STATUS_LINE[status]]
            for name, value in (*cycle.default_headers, *headers):
                parts += (name, b": ", value, b"\r\n")
            parts.append(b"\r\n")
            if cycle.scope["method"] != "HEAD":
                parts.append(body)
            cycle.transport.write(b"".join(parts))
            cycle.message_event.set()
            if not cycle.keep_alive:
                cycle.transport.close()
            cycle.on_response()
        return True

    def wake(self) -> None:
        """Let the reader of the body see what has changed."""
        self._cycle.message_event.set()

    def close_after(self) -> None:
        """No further request on this connection."""
        self._cycle.keep_alive = False

    def abort(self) -> None:
        self._cycle.disconnected = True
        self._connection.transport.abort()

    def break_off(self) -> None:
        self._cycle.disconnected = True
        self._connection.transport.close()


class _Writer:
    """The transport as one request sees it: closing it waits for a client that is still sending its body."""

    __slots__ = ("_connection", "is_closing", "write")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.write = connection.transport.write
        self.is_closing = connection.transport.is_closing

    def close(self) -> None:
        self._connection.close_gently()


class _HeadTooLarge(Exception):
    """Stops the parser in the middle of a head."""


class Connection(HttpToolsProtocol):
    """See the module. One instance for each accepted socket."""

    def __init__(
        self, config: Config, server_state: ServerState, limits: ConnectionLimits, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(config, server_state, {}, loop)
        self.limits = limits
        self.timeout_keep_alive = limits.keep_alive_seconds  # type: ignore[assignment] # uvicorn says int
        self.exchange: CycleExchange | None = None
        self._is_in_head = False
        self._head_bytes = 0
        self._head_packet_bytes = 0
        self._is_discarding = False
        self._is_ending = False
        self._discarded_bytes = 0
        self._arrival_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._writer = _Writer(self)
        if len(self.connections) > self.limits.connections_max:
            self._refuse(503, "too many connections; try again later")
        else:
            self._arm_keep_alive()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_arrival()
        self._unset_keepalive_if_required()
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_discarding:
            self._discard(data)
            return
        self._unset_keepalive_if_required()
        if self._is_in_head:
            self._head_packet_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            if self.exchange is not None:
                self.exchange.close_after()  # no protocol to upgrade to: the request is served as it is
        except httptools.HttpParserError:
            self._on_bad_bytes()
            return
        if self._is_in_head and self._head_packet_bytes > HEAD_BYTES_MAX:
            self._on_bad_bytes()
            return
        self._watch_arrival()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._head_bytes = self._head_packet_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > URL_BYTES_MAX:
            raise _HeadTooLarge

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX:
            raise _HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        super().on_headers_complete()
        self.exchange = self.scope["runnel"] = CycleExchange(self, self.cycle)  # type: ignore[typeddict-unknown-key]
        self.cycle.transport = self._writer  # type: ignore[assignment]

    def on_body(self, body: bytes) -> None:
        if self.exchange is not None and not self.cycle.response_complete:
            self.exchange.add(body)

    def on_response_complete(self) -> None:
        is_early = not self.pipeline and self.exchange is not None and not self.exchange.is_body_whole
        super().on_response_complete()
        if is_early:
            self.close_gently()  # what still comes is the rest of a body that nobody reads

    def timeout_keep_alive_handler(self) -> None:
        if self._is_ending:
            return  # the linger timer decides
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # the last response was never taken: a flush would wait for ever
        else:
            super().timeout_keep_alive_handler()

    def close_gently(self) -> None:
        """Close when the client has what was written; while it is still sending, read and throw away."""
        if self._is_ending or self.transport.is_closing():
            return
        if self._is_in_head or (self.exchange is not None and not self.exchange.is_body_whole) or self._is_discarding:
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        self._is_ending = self._is_discarding = True
        self._cancel_arrival()
        self.flow.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger_timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _discard(self, data: bytes) -> None:
        self._discarded_bytes += len(data)
        if self._is_ending and self._discarded_bytes > LINGER_BYTES_MAX:
            self.transport.abort()

    @property
    def _is_busy(self) -> bool:
        """A request is being served, so nothing else may be written."""
        return self.exchange is not None and not self.exchange.is_gone and not self.cycle.response_complete

    def _on_bad_bytes(self) -> None:
        """What came is no HTTP, or its head is too large."""
        if len(getattr(self, "url", b"")) > URL_BYTES_MAX:
            self._refuse(414, "the request's URL is too long")
        elif max(self._head_bytes, self._head_packet_bytes) > HEAD_BYTES_MAX:
            self._refuse(431, "the request's head is too large")
        else:
            self._refuse(400, "Invalid HTTP request received.")

    def _refuse(self, status: int, message: str) -> None:
        """Answer without a handler, then close. A request under way is answered first, and nothing after it."""
        if self._is_ending or self.transport.is_closing():
            return
        self._is_discarding = True
        self._cancel_arrival()
        if self._is_busy and self.exchange is not None:
            self.exchange.close_after()
            if not self.exchange.is_body_whole:
                self.exchange.is_body_broken = True
                self.exchange.wake()
            return
        body = message.encode("ascii")
        retry = b"retry-after: 1\r\n" if status == 503 else b""
        self.transport.write(REFUSAL % (status, REFUSALS[status], len(body), retry) + body)
        self._linger()

    def _arm_keep_alive(self) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def _watch_arrival(self) -> None:
        """Give the rest of a head or body a time to come; requests that come in one read never arm a timer."""
        is_waiting = self._is_in_head or (self.exchange is not None and not self.exchange.is_body_whole)
        if not is_waiting:
            self._cancel_arrival()
        elif self._arrival_timer is None:
            self._arrival_timer = self.loop.call_later(self.limits.body_seconds, self._on_slow)

    def _on_slow(self) -> None:
        self._arrival_timer = None
        if self.flow.read_paused:
            self._watch_arrival()  # we do not read, so it cannot come
        elif self._is_in_head:
            self._refuse(408, "the request's head did not arrive in time")
        elif self.exchange is not None and not self.exchange.is_body_whole:
            self.exchange.is_body_slow = True
            self.exchange.wake()

    def _cancel_arrival(self) -> None:
        if self._arrival_timer is not None:
            self._arrival_timer.cancel()
            self._arrival_timer = None
