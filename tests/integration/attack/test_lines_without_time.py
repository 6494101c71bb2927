"""Lines without a timestamp that once stood twice: written, and written again at another time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from unittest import mock

from nodes.backend import Principal, QueryRequest
from nodes.embedded import EmbeddedBackend
from nodes.gateway.coalesce import Coalescer
from nodes.metrics import Metrics
from nodes.settings_model import DataSettings, LogSettings, Settings
from storage.errors import RequestTooLarge
from wire.lineprotocol.model import ParserLimits, Precision
from wire.lineprotocol.reference import ReferenceParser

if TYPE_CHECKING:
    from pathlib import Path

OBJECT_BYTES = 64 * 1024
ANYONE = Principal()


async def _count(backend: EmbeddedBackend, table: str) -> int:
    result = await backend.query(QueryRequest("db", f"SELECT count(*) AS n FROM {table}"), ANYONE)
    return sum([batch.column(0)[0].as_py() async for batch in result])


def test_a_line_that_stood_is_not_written_again_at_another_time_when_its_neighbour_is_too_large(
    tmp_path: Path,
) -> None:
    """Both wait together and go to two shards: one takes its part, the other refuses the neighbour's."""
    settings = Settings(data=DataSettings(dir=str(tmp_path)), log=LogSettings(shards=2))
    failures: list[BaseException] = []

    async def main() -> int:
        async with EmbeddedBackend(settings, settings.budgets(), failures.append) as backend:
            coalescer = Coalescer(backend, lambda: ReferenceParser(ParserLimits()), Metrics())

            async def write(body: bytes) -> None:
                await coalescer.write("db", Precision.NANOSECOND, body, is_all_or_nothing=False, principal=ANYONE)

            try:
                await asyncio.gather(write(b"large f=1 1"), write(b"small f=1 1"))  # one table on each shard
                large = b"\n".join(b"large f=%d %d" % (n, n) for n in range(8_000))
                with mock.patch("storage.shard.OBJECT_BYTES_MAX", OBJECT_BYTES):
                    outcomes = await asyncio.gather(write(large), write(b"small f=2"), return_exceptions=True)
                assert isinstance(outcomes[0], RequestTooLarge)
                assert outcomes[1] is None
                return await _count(backend, "small")
            finally:
                await coalescer.aclose()

    assert asyncio.run(main()) == 2
    assert not failures
