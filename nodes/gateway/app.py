"""The ASGI application: routes a request, runs its handler, answers errors, sends the response.

Thin on purpose: for a small write it makes one Request, looks one path up and sends one prepared message. Served
by `nodes.gateway.server`; put together in `nodes.gateway.assembly`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import structlog

from engine.errors import QueryKilled
from nodes.gateway.compress import Gzip, takes_gzip
from nodes.gateway.faults import ClientGone, GatewayError, MethodNotAllowed, NotFound
from nodes.gateway.http import CLOSE, Limits, Request, Response
from nodes.gateway.router import Router
from nodes.gateway.streaming import GZIP_BYTES_MIN, GZIP_HEADERS, Body, SendStalled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nodes.gateway.budget import WaitingBudget
    from nodes.gateway.middleware.access import AccessMetrics

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
Send: TypeAlias = Callable[[dict[str, Any]], Awaitable[None]]
ErrorWriter: TypeAlias = Callable[[Request, Exception], Response]
"""A door's way to write an error as its protocol does."""

GONE_STATUS: Final = 499
"""Counted for clients that hung up; never sent."""
END: Final[dict[str, Any]] = {"type": "http.response.body", "body": b"", "more_body": False}

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Route:
    """One method of one pattern. ``on_error`` writes what the handler raises."""

    method: str
    pattern: str
    handler: Handler
    on_error: ErrorWriter
    needs_backend: bool = True
    is_traced: bool = False


Middleware: TypeAlias = Callable[[Route, Handler], Handler]


class Gateway:
    """The application. ``extra_headers`` says, for each response, what every one of them carries."""

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        limits: Limits,
        budget: WaitingBudget,
        access: AccessMetrics,
        on_error: ErrorWriter,
        preflight: Callable[[], Response],
        middleware: Sequence[Middleware] = (),
    ) -> None:
        self._router: Router[tuple[Route, Handler]] = Router()
        for route in routes:
            handler = route.handler
            for wrap in reversed(middleware):
                handler = wrap(route, handler)
            self._router.add(route.method, route.pattern, (route, handler))
        self._limits = limits
        self._budget = budget
        self._access = access
        self._on_error = on_error
        self._preflight = preflight
        self.in_flight = 0

    async def __call__(
        self, scope: Mapping[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Send
    ) -> None:
        if scope["type"] != "http":
            return
        started = perf_counter()
        request = Request(scope, receive, self._limits, self._budget)
        self.in_flight += 1
        status, sent = GONE_STATUS, 0
        try:
            response = await self._respond(request)
            if response is not None:
                status = response.status
                sent = await self._send(request, response, send)
        except asyncio.CancelledError:
            if not request.is_hung_up:
                request.exchange.abort()  # the server's deadline: nobody waits for this answer any more
        finally:
            self.in_flight -= 1
            request.release()
        self._access.count(request.method, request.pattern, status, perf_counter() - started, sent)

    async def _respond(self, request: Request) -> Response | None:
        """The answer; None when there is nobody to answer."""
        on_error = self._on_error
        try:
            if request.method == "OPTIONS":
                return self._preflight()
            found = self._router.find(request.path)
            if found is None:
                raise NotFound
            leaf, request.parameters = found
            request.pattern = leaf.pattern
            entry = leaf.find(request.method)
            if entry is None:
                raise MethodNotAllowed(leaf.allowed)
            route, handler = entry
            on_error = route.on_error
            response = await handler(request)
            return response if isinstance(response.body, bytes) else await _primed(request, response)
        except ClientGone:
            return None
        except Exception as error:  # noqa: BLE001 - every error becomes an answer; faults are logged there
            response = on_error(request, error)
            if isinstance(error, GatewayError) and error.is_final:
                response.headers = [*response.headers, CLOSE]
            return response

    async def _send(self, request: Request, response: Response, send: Send) -> int:
        """Send it; returns the body's bytes as sent."""
        headers = response.headers
        if not request.exchange.is_body_whole and CLOSE not in headers:
            headers = [*headers, CLOSE]
        body = response.body
        if isinstance(body, Body):
            return await self._send_stream(request, response, headers, body, send)
        if not isinstance(body, bytes):
            raise TypeError("a stream is primed before it is sent")
        if len(body) >= GZIP_BYTES_MIN and takes_gzip(request.header(b"accept-encoding")):
            gzip = Gzip()
            body = await gzip.add(body) + gzip.end()
            headers = headers + GZIP_HEADERS
        if response.status != 204:
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        request.is_answered = True
        if request.exchange.respond(response.status, headers, body):
            return len(body)
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False} if body else END)
        return len(body)

    async def _send_stream(
        self, request: Request, response: Response, headers: list[tuple[bytes, bytes]], body: Body, send: Send
    ) -> int:
        try:
            await body.send(request, response, headers, send)
        except SendStalled:
            log.info("a client stopped taking its result", path=request.path, request_id=request.request_id)
            request.exchange.abort()
        except QueryKilled as error:
            log.info("a result was ended by an operator", request_id=request.request_id, reason=str(error))
            request.exchange.break_off()
        except Exception as error:  # noqa: BLE001 - the status is out: all that is left is to break the body
            log.warning("a result broke off", path=request.path, request_id=request.request_id, error=str(error)[:500])
            request.exchange.break_off()
        finally:
            request.is_answered = True  # a hang-up that is noticed now must not cut the clean-up short
            await body.aclose()
        return body.sent_bytes


async def _primed(request: Request, response: Response) -> Response:
    """Wait for the first bytes of a stream; short ones become plain bodies."""
    if isinstance(response.body, (bytes, Body)):
        return response
    body = Body(response.body)
    try:
        await body.prime()
    except BaseException:
        request.is_answered = True
        await body.aclose()
        raise
    if body.is_whole:
        await body.aclose()
        return Response(response.status, response.headers, body.head)
    return Response(response.status, response.headers, body)
