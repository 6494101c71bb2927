"""One HTTP request and its response, as handlers see them: thin values over ASGI.

`nodes.gateway.app` makes a Request for each ASGI scope and sends the Response that a handler returns. A body
is read in one call, its chunks gathered and joined once, within the limits of `Limits`.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol
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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from nodes.gateway.budget import WaitingBudget
    from nodes.gateway.streaming import Body

Header = tuple[bytes, bytes]

INFLATE_HERE_BYTES: Final = 4096
"""Smaller gzip bodies are inflated on the event loop: cheaper than a hop to a thread."""
INFLATE_RATIO_HERE: Final = 64 * 1024
"""What such a body may inflate to before it goes to a thread after all."""
REQUEST_ID_CHARACTERS_MAX: Final = 128
UNMATCHED: Final = "unmatched"
"""A request's pattern until a route takes it: the label that it is counted under."""
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
        receive: Callable[[], Awaitable[dict[str, Any]]],
        limits: Limits,
        budget: WaitingBudget,
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.query_string: bytes = scope["query_string"]
        self.headers: list[Header] = scope["headers"]
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

    def query(self) -> list[tuple[str, str]]:
        """The URL's query parameters, decoded, in order. BadRequest if there are too many."""
        return parse_form(self.query_string)

    async def body(self) -> bytes:
        """The whole body, inflated; once for each request.

        Raises BodyTooLarge, BodySlow, BodyBroken, BadEncoding, BadGzip, ClientGone, Overloaded.
        """
        encoding = self.header(b"content-encoding")
        if encoding not in (None, b"identity", b"gzip", b""):
            raise BadEncoding(f"unacceptable content-encoding: {encoding.decode('latin-1') if encoding else ''}")
        body = await self._gather()
        return await self._inflate(body) if encoding == b"gzip" else body

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

    async def _gather(self) -> bytes:
        limit = self.limits.request_bytes_max
        promised = self.header(b"content-length")
        if promised is not None and promised.isdigit() and int(promised) > limit:
            raise BodyTooLarge(limit)
        parts: list[bytes] = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone("the client hung up before its request was whole")
            if self.exchange.is_body_slow:
                raise BodySlow
            if self.exchange.is_body_broken:
                raise BodyBroken
            part: bytes = message["body"]
            self._take(len(part))
            if self._body_bytes > limit:
                raise BodyTooLarge(limit)
            if not message.get("more_body", False):
                if not parts:
                    return part
                parts.append(part)
                return b"".join(parts)
            parts.append(part)

    async def _inflate(self, body: bytes) -> bytes:
        limit = self.limits.request_bytes_max
        if len(body) <= INFLATE_HERE_BYTES:
            try:
                return self._inflated(inflate(body, min(limit, INFLATE_RATIO_HERE)))
            except BodyTooLarge:
                if limit <= INFLATE_RATIO_HERE:
                    raise
        return self._inflated(await asyncio.get_running_loop().run_in_executor(None, inflate, body, limit))

    def _inflated(self, body: bytes) -> bytes:
        self._take(len(body))
        return body


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
