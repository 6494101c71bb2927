"""Send a streamed body: flow control, a stall limit, gzip, and what to do when it breaks half way.

Driven by `nodes.gateway.app`. A body is primed before its status goes out, so that a query that fails at once
still gets its own status; after that, an error closes the connection without the final chunk.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from nodes.gateway.compress import Gzip, takes_gzip

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from nodes.gateway.http import Header, Request, Response

GZIP_BYTES_MIN: Final = 1024
"""Smaller bodies are sent as they are, in one piece."""
SEND_BYTES_MAX: Final = 256 * 1024
"""Handed to the transport at once: what one slow reader can hold in our memory."""
GZIP_HEADERS: Final[list[Header]] = [(b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")]
EMPTY_TYPES: Final = (b"application/vnd.apache.parquet",)
"""Compressed already."""


class SendStalled(Exception):
    """The client takes nothing of its response."""


class Body:
    """The chunks of one response: the first at least `GZIP_BYTES_MIN` bytes (``head``), then the others."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self.head = b""
        self.is_whole = False
        self.sent_bytes = 0

    async def prime(self) -> None:
        """Wait for the first bytes. Raises what the source raises."""
        parts: list[bytes] = []
        size = 0
        async for chunk in self._chunks:
            parts.append(chunk)
            size += len(chunk)
            if size > GZIP_BYTES_MIN:
                break
        else:
            self.is_whole = True
        self.head = parts[0] if len(parts) == 1 else b"".join(parts)

    async def send(
        self,
        request: Request,
        response: Response,
        headers: list[Header],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        """Send status, headers and chunks. Raises what the source raises, and SendStalled."""
        gzip = None
        if not _is_packed(response) and takes_gzip(request.header(b"accept-encoding")):
            gzip = Gzip()
            headers = headers + GZIP_HEADERS
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await self._push(request, send, await gzip.add(self.head) if gzip else self.head)
        self.head = b""
        async for chunk in self._chunks:
            await self._push(request, send, await gzip.add(chunk) if gzip else chunk)
            if request.exchange.is_gone:
                return
        if gzip:
            await self._push(request, send, gzip.end())
        request.is_answered = True
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def aclose(self) -> None:
        """End the source early; harmless when it has ended."""
        close = getattr(self._chunks, "aclose", None)
        if close is not None:
            await close()

    async def _push(self, request: Request, send: Callable[[dict[str, Any]], Awaitable[None]], data: bytes) -> None:
        for start in range(0, len(data), SEND_BYTES_MAX):
            piece = data if len(data) <= SEND_BYTES_MAX else data[start : start + SEND_BYTES_MAX]
            message = {"type": "http.response.body", "body": piece, "more_body": True}
            self.sent_bytes += len(piece)
            if not request.exchange.is_send_paused:
                await send(message)
                continue
            try:
                async with asyncio.timeout(request.limits.send_stall_seconds):
                    await send(message)
            except TimeoutError as error:
                raise SendStalled from error


def _is_packed(response: Response) -> bool:
    return any(value in EMPTY_TYPES for name, value in response.headers if name == b"content-type")
