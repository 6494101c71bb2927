"""gzip for responses: which clients take it, and chunks in, chunks out.

Driven by `nodes.gateway.streaming`; isal's fastest level costs about a tenth of what writing the JSON did.
"""

from __future__ import annotations

import asyncio
from typing import Final

from isal import isal_zlib

from nodes.gateway.inflate import GZIP_WINDOW_BITS

LEVEL: Final = 1
COMPRESS_HERE_BYTES: Final = 64 * 1024
"""Bigger chunks are compressed off the event loop."""


def takes_gzip(accept_encoding: bytes | None) -> bool:
    """Whether an Accept-Encoding header allows gzip (RFC 9110 12.5.3: ``q=0`` forbids)."""
    if not accept_encoding:
        return False
    allowed: dict[bytes, bool] = {}
    for item in accept_encoding.lower().split(b","):
        name, _, weight = item.replace(b" ", b"").partition(b";q=")
        allowed[name] = weight.strip(b"0.") != b"" or not weight
    return allowed.get(b"gzip", allowed.get(b"*", False))


class Gzip:
    """One response's compressor."""

    def __init__(self) -> None:
        self._stream = isal_zlib.compressobj(level=LEVEL, wbits=GZIP_WINDOW_BITS)

    async def add(self, chunk: bytes) -> bytes:
        """What is ready after ``chunk``; often nothing."""
        if len(chunk) <= COMPRESS_HERE_BYTES:
            return self._stream.compress(chunk)
        return await asyncio.get_running_loop().run_in_executor(None, self._stream.compress, chunk)

    def end(self) -> bytes:
        """The rest and the trailer."""
        return self._stream.flush()
