"""Acknowledged rows that nobody could ever read, because a shorter retention period had been set before."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from nodes.backend import Principal, QueryRequest
from nodes.embedded import EmbeddedBackend
from nodes.gateway.coalesce import Coalescer
from nodes.metrics import Metrics
from nodes.settings_model import DataSettings, Settings
from storage.changes import SetRetention
from wire.lineprotocol.model import ParserLimits, Precision
from wire.lineprotocol.reference import ReferenceParser

if TYPE_CHECKING:
    from pathlib import Path

ANYONE: Final = Principal()
MINUTE_NS: Final = 60 * 1_000_000_000
DAY_NS: Final = 24 * 60 * MINUTE_NS


def test_a_row_written_within_a_longer_period_is_shown_also_after_a_restart(tmp_path: Path) -> None:
    settings = Settings(data=DataSettings(dir=str(tmp_path)))
    failures: list[BaseException] = []
    now = time.time_ns()

    async def values(backend: EmbeddedBackend) -> list[float]:
        result = await backend.query(QueryRequest("db", "SELECT f FROM x ORDER BY f"), ANYONE)
        return [value async for batch in result for value in batch.column(0).to_pylist()]

    async def first() -> None:
        async with EmbeddedBackend(settings, settings.budgets(), failures.append) as backend:
            coalescer = Coalescer(backend, lambda: ReferenceParser(ParserLimits()), Metrics())

            async def write(value: int, age_ns: int) -> None:
                body = f"x f={value} {now - age_ns}".encode()
                await coalescer.write("db", Precision.NANOSECOND, body, is_all_or_nothing=False, principal=ANYONE)

            await write(1, 0)
            await write(2, 60 * MINUTE_NS)
            await write(3, 3 * DAY_NS)
            await backend.alter([SetRetention("db", 10 * MINUTE_NS)], ANYONE)
            assert await values(backend) == [1]
            await backend.alter([SetRetention("db", DAY_NS)], ANYONE)
            await write(4, 120 * MINUTE_NS)
            assert await values(backend) == [1, 2, 4]
            await backend.alter([SetRetention("db", 90 * MINUTE_NS)], ANYONE)
            assert set(await values(backend)) >= {1, 2}
            await backend.alter([SetRetention("db", DAY_NS)], ANYONE)
            await coalescer.aclose()

    async def again() -> list[float]:
        async with EmbeddedBackend(settings, settings.budgets(), failures.append) as backend:
            return await values(backend)

    asyncio.run(first())
    assert asyncio.run(again()) == [1, 2, 4]
    assert not failures
