"""One HTTP request and its response, as handlers see them: thin values over ASGI.

`nodes.gateway.app` makes a Request for each ASGI scope and sends the Response that a handler returns. A body
is read in one call, in the pieces in which it came, within the limits of `Limits`.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import parse_qsl

from nodes.gateway.faults import (
    BadEncoding,
    BadRequest,
    BodyBroken,
    BodySlow,
    BodyTooLarge,
    ClientGone,
)
from nodes.gateway.inflate import inflate
from nodes.gateway.router import NO_PARAMETERS
from nodes.settings_kinds import Address

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from nodes.gateway.budget import WaitingBudget
    from nodes.gateway.streaming import Body

Header = tuple[bytes, bytes]
Receive: TypeAlias = "Callable[[], Awaitable[dict[str, Any]]]"

INFLATE_HERE_BYTES: Final = 4096
"""Smaller gzip bodies are inflated on the event loop: cheaper than a hop to a thread."""
INFLATE_RATIO_HERE: Final = 64 * 1024
"""What such a body may inflate to before it goes to a thread after all."""
REQUEST_ID_CHARACTERS_MAX: Final = 128
UNMATCHED: Final = "unmatched"
"""A request's pattern until a route takes it: the label that it is counted under."""
PIECES_LOOSE_MAX: Final = 256
"""So many pieces of a body are kept as they came, then they are joined: one of a byte takes 40 bytes of memory."""
PARAMETERS_MAX: Final = 256
"""Query parameters in one URL or form."""

TEXT_TYPE: Final[Header] = (b"content-type", b"text/plain; charset=utf-8")
JSON_TYPE: Final[Header] = (b"content-type", b"application/json")
CLOSE: Final[Header] = (b"connection", b"close")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may take. ``request_bytes_max`` counts the body as sent and again inflated."""

    request_bytes_max: int = 10_485_760
    body_seconds: float = 30.0
    send_stall_seconds: float = 30.0


class Exchange(Protocol):
    """What the server tells of one request's connection (`nodes.gateway.connection`)."""

    @property
    def is_gone(self) -> bool:
        """The client has hung up."""
        ...

    @property
    def is_send_paused(self) -> bool:
        """The client does not take what was sent."""
        ...

    @property
    def is_body_whole(self) -> bool:
        """The request's body has arrived."""
        ...

    @property
    def is_body_slow(self) -> bool: ...

    @property
    def is_body_broken(self) -> bool: ...

    async def arrival(self, receive: Receive) -> list[bytes] | None:
        """Wait for more of the body: what came since the last call, at its end perhaps nothing. None: hung up."""
        ...

    def respond(self, status: int, headers: list[Header], body: bytes) -> bool:
        """Send a whole response at once; False if it must go through ASGI."""
        ...

    def abort(self) -> None:
        """Drop the connection now, with what the client has not taken yet."""
        ...

    def break_off(self) -> None:
        """Close the connection after what was sent, without the end of the body: the client sees that it is broken."""
        ...


class NoExchange:
    """For ASGI servers that are not ours (tests): nothing is known, nothing can be dropped."""

    is_gone = False
    is_send_paused = False
    is_body_whole = True
    is_body_slow = False
    is_body_broken = False

    async def arrival(self, receive: Receive) -> list[bytes] | None:
        """All of the body, by ASGI's messages."""
        pieces: list[bytes] = []
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            pieces.append(message["body"])
            if not message.get("more_body", False):
                return pieces

    def respond(self, status: int, headers: list[Header], body: bytes) -> bool:
        """Not here."""
        return False

    def abort(self) -> None:
        """Nothing to drop."""

    def break_off(self) -> None:
        """Nothing to close."""


NO_EXCHANGE: Final = NoExchange()


class Request:
    """One request. ``path`` is decoded, ``query_string`` is not; header names are lower-case bytes."""

    __slots__ = (
        "_body_bytes",
        "_budget",
        "_receive",
        "_request_id",
        "_watcher",
        "client",
        "exchange",
        "headers",
        "is_answered",
        "is_hung_up",
        "limits",
        "method",
        "parameters",
        "path",
        "pattern",
        "query_string",
    )

    def __init__(
        self,
        scope: Mapping[str, Any],
        receive: Receive,
        limits: Limits,
        budget: WaitingBudget,
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query_string: bytes = scope["query_string"]
        self.headers: list[Header] = scope["headers"]
        self.client: tuple[str, int] | None = scope.get("client")
        self.exchange: Exchange = scope.get("runnel", NO_EXCHANGE)
        self.parameters: Mapping[str, str] = NO_PARAMETERS
        self.pattern = UNMATCHED
        self.is_answered = False
        self.is_hung_up = False
        self.limits = limits
        self._watcher: asyncio.Task[None] | None = None
        self._receive = receive
        self._budget = budget
        self._body_bytes = 0
        self._request_id: str | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header, by its lower-case name."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def request_id(self) -> str:
        """The client's X-Request-Id if it is a short printable word, else one of our own."""
        if self._request_id is None:
            given = (self.header(b"x-request-id") or b"").decode("latin-1")
            fits = 0 < len(given) <= REQUEST_ID_CHARACTERS_MAX and given.isascii() and given.isprintable()
            self._request_id = given if fits else str(uuid.uuid4())
        return self._request_id

    @property
    def client_address(self) -> str:
        """HOST:PORT of who is connected: the client, or what stands before it. Empty if it is not known."""
        return str(Address(*self.client)) if self.client is not None else ""

    def query(self) -> list[tuple[str, str]]:
        """The URL's query parameters, decoded, in order. BadRequest if there are too many."""
        return parse_form(self.query_string)

    async def body(self) -> bytes:
        """The whole body, inflated; once for each request. Raises as `pieces` does."""
        pieces = await self.pieces()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def pieces(self) -> tuple[bytes, ...]:
        """The body in pieces, inflated; once for each request. Joining them would be a copy in fresh memory.

        Raises BodyTooLarge, BodySlow, BodyBroken, BadEncoding, BadGzip, ClientGone, Overloaded.
        """
        encoding = self.header(b"content-encoding")
        if encoding not in (None, b"identity", b"gzip", b""):
            raise BadEncoding(f"unacceptable content-encoding: {encoding.decode('latin-1') if encoding else ''}")
        pieces = await self._gather()
        return tuple(await self._inflate(b"".join(pieces)) if encoding == b"gzip" else pieces)

    def watch(self) -> None:
        """Cancel this task when the client hangs up before its answer is whole. After `body` only."""
        task = asyncio.current_task()
        if task is not None:
            self._watcher = asyncio.create_task(self._cancel_on_hang_up(task))

    def release(self) -> None:
        """The request is over: give the body's bytes back, watch no more. The app calls it."""
        if self._body_bytes:
            self._budget.give(self._body_bytes)
            self._body_bytes = 0
        if self._watcher is not None:
            self._watcher.cancel()

    async def _cancel_on_hang_up(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.is_answered:
            self.is_hung_up = True
            task.cancel()

    def _take(self, count: int) -> None:
        self._budget.take(count)
        self._body_bytes += count

    async def _gather(self) -> list[bytes]:
        limit = self.limits.request_bytes_max
        promised = self.header(b"content-length")
        if promised is not None and promised.isdigit() and int(promised) > limit:
            raise BodyTooLarge(limit)
        exchange = self.exchange
        pieces: list[bytes] = []
        joined = 0
        while True:
            arrived = await exchange.arrival(self._receive)
            if arrived is None:
                raise ClientGone("the client hung up before its request was whole")
            if exchange.is_body_slow:
                raise BodySlow
            if exchange.is_body_broken:
                raise BodyBroken
            self._take(sum(map(len, arrived)))
            if self._body_bytes > limit:
                raise BodyTooLarge(limit)
            pieces += arrived
            if len(pieces) - joined > PIECES_LOOSE_MAX:
                pieces[joined:] = [b"".join(pieces[joined:])]
                joined += 1
            if exchange.is_body_whole:
                return pieces

    async def _inflate(self, body: bytes) -> list[bytes]:
        limit = self.limits.request_bytes_max
        if len(body) <= INFLATE_HERE_BYTES:
            try:
                return self._inflated(inflate(body, min(limit, INFLATE_RATIO_HERE)))
            except BodyTooLarge:
                if limit <= INFLATE_RATIO_HERE:
                    raise
        return self._inflated(await asyncio.get_running_loop().run_in_executor(None, inflate, body, limit))

    def _inflated(self, pieces: list[bytes]) -> list[bytes]:
        self._take(sum(map(len, pieces)))
        return pieces


@dataclass(slots=True)
class Response:
    """A status, headers, and a body: bytes, or chunks that are streamed with flow control."""

    status: int
    headers: list[Header]
    body: bytes | AsyncIterator[bytes] | Body = b""


def parse_form(text: bytes) -> list[tuple[str, str]]:
    """Decode ``a=b&c=d`` as browsers write it; bytes that are no UTF-8 become U+FFFD, as serde does it."""
    try:
        return parse_qsl(text.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=PARAMETERS_MAX)
    except ValueError as error:
        raise BadRequest(f"too many parameters: at most {PARAMETERS_MAX}") from error
