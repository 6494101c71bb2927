"""Gzip bodies: members, limits, and everything that is no gzip."""

from __future__ import annotations

import gzip
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nodes.gateway.compress import Gzip, takes_gzip
from nodes.gateway.faults import BadGzip, BodyTooLarge
from nodes.gateway.inflate import STEP_BYTES, inflate

LIMIT = 10_485_760


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4))
def test_members_one_after_the_other_are_one_body(members: list[bytes]) -> None:
    assert b"".join(inflate(b"".join(map(gzip.compress, members)), LIMIT)) == b"".join(members)


@pytest.mark.parametrize("size", [STEP_BYTES - 1, STEP_BYTES, STEP_BYTES + 1, 3 * STEP_BYTES + 7])
def test_bodies_of_several_steps(size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert b"".join(inflate(gzip.compress(body, 1), LIMIT)) == body


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
def test_up_to_the_limit_fits(size: int) -> None:
    assert sum(map(len, inflate(gzip.compress(b"a" * size), 1000))) == size


@pytest.mark.parametrize("body", [b"a" * 1001, b"a" * 100_000])
def test_over_the_limit_is_too_large(body: bytes) -> None:
    with pytest.raises(BodyTooLarge, match=r"^max request size \(1000 bytes\) exceeded$"):
        inflate(gzip.compress(body), 1000)


def test_the_limit_counts_all_members() -> None:
    with pytest.raises(BodyTooLarge):
        inflate(gzip.compress(b"a" * 600) * 2, 1000)


GOOD = gzip.compress(b"cpu,host=a v=1 1\n" * 100)


@pytest.mark.parametrize(
    "body",
    [b"", b"x", b"not gzip at all", GOOD[:5], GOOD[:-1], GOOD[:-8], GOOD[: len(GOOD) // 2], GOOD + b"junk"],
    ids=["empty", "byte", "text", "head", "tail", "trailer", "half", "junk"],
)
def test_what_is_no_gzip(body: bytes) -> None:
    with pytest.raises(BadGzip, match=r"^error decoding gzip stream: "):
        inflate(body, LIMIT)


def test_a_wrong_checksum_is_found() -> None:
    with pytest.raises(BadGzip):
        inflate(GOOD[:-8] + b"\0\0\0\0" + GOOD[-4:], LIMIT)


def test_a_bomb_takes_no_more_than_the_limit() -> None:
    bomb = gzip.compress(bytes(200 * 2**20), 9)
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLarge):
            inflate(bomb, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < 2 * LIMIT
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, False),
        (b"", False),
        (b"gzip", True),
        (b"GZIP", True),
        (b"deflate, gzip;q=0.5, br", True),
        (b"gzip;q=0", False),
        (b"gzip; q=0.000", False),
        (b"identity", False),
        (b"*", True),
        (b"*;q=0", False),
        (b"*, gzip;q=0", False),
        (b"br, *;q=0.1", True),
    ],
)
def test_who_takes_gzip(header: bytes | None, expected: bool) -> None:
    assert takes_gzip(header) is expected


def test_a_compressed_stream_is_gzip() -> None:
    import asyncio

    async def compress() -> bytes:
        stream = Gzip()
        parts = [await stream.add(chunk) for chunk in (b"a" * 10, b"b" * 200_000, b"")]
        return b"".join(parts) + stream.end()

    assert gzip.decompress(asyncio.run(compress())) == b"a" * 10 + b"b" * 200_000
