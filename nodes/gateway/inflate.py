"""Inflate gzip bodies with isal, never holding more than the limit allows.

Driven by `nodes.gateway.http`; big bodies are inflated off the event loop. Several members in one
body are read one after the other, as InfluxDB does.
"""

from __future__ import annotations

from typing import Final

from isal import isal_zlib

from nodes.gateway.faults import BadGzip, BodyTooLarge

GZIP_WINDOW_BITS: Final = 31
"""zlib's number for a gzip header and trailer around a window of 32 KiB."""
_GZIP_ERROR: Final[type[Exception]] = isal_zlib.IsalError  # type: ignore[assignment] # its stub says instance
STEP_BYTES: Final = 1 << 20
"""Inflated at once: a bomb is stopped at most this far beyond the limit."""


def inflate(body: bytes, limit_bytes: int) -> list[bytes]:
    """The inflated body in pieces. BadGzip if it is no gzip or ends early; BodyTooLarge over ``limit_bytes``."""
    parts: list[bytes] = []
    total = 0
    rest = body
    while True:
        member = isal_zlib.decompressobj(wbits=GZIP_WINDOW_BITS)
        while not member.eof:
            part = _step(member, rest, min(STEP_BYTES, limit_bytes - total + 1))
            rest = member.unconsumed_tail
            if not part and not rest and not member.eof:
                raise BadGzip("error decoding gzip stream: unexpected end of file")
            total += len(part)
            if total > limit_bytes:
                raise BodyTooLarge(limit_bytes)
            parts.append(part)
        rest = member.unused_data
        if not rest:
            return parts


def _step(member: isal_zlib.Decompress, data: bytes, most_bytes: int) -> bytes:
    try:
        return member.decompress(data, most_bytes)
    except _GZIP_ERROR as error:
        raise BadGzip(f"error decoding gzip stream: {error}") from error
