"""Clients that once waited for ever for a silent store, and rows that once were refused for another shard's damage."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING
from unittest import mock

import pytest

import nodes.appender
import nodes.embedded
from nodes.backend import Principal, QueryRequest
from nodes.embedded import EmbeddedBackend
from nodes.gateway.coalesce import Coalescer
from nodes.metrics import Metrics
from nodes.settings_model import DataSettings, LogSettings, Settings
from storage.changes import CreateDatabase
from storage.errors import OutcomeUnknown, ShardClosed, StorageError, StoreUnavailable
from storage.objects import open_store
from tests.harness.stores import Fault, FaultStore
from wire.lineprotocol.model import ParserLimits, Precision
from wire.lineprotocol.reference import ReferenceParser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from storage.objects import S3Options

SHORT_SECONDS = 0.3
FOR_EVER = 1_000_000
ANYONE = Principal()


class Node:
    """A backend, its writes and its store's faults."""

    def __init__(self, backend: EmbeddedBackend, coalescer: Coalescer, store: FaultStore) -> None:
        self.backend = backend
        self.store = store
        self._coalescer = coalescer

    async def write(self, body: str) -> None:
        await self._coalescer.write(
            "db", Precision.NANOSECOND, body.encode(), is_all_or_nothing=False, principal=ANYONE
        )  # fmt: skip

    async def count(self, table: str) -> int:
        result = await self.backend.query(QueryRequest("db", f'SELECT count(*) AS n FROM "{table}"'), ANYONE)
        return sum([batch.column(0)[0].as_py() async for batch in result])


@contextlib.asynccontextmanager
async def node_at(folder: Path, shards: int = 2) -> AsyncIterator[Node]:
    settings = Settings(data=DataSettings(dir=str(folder)), log=LogSettings(shards=shards))
    stores: list[FaultStore] = []

    def opened(url: str, options: S3Options | None) -> FaultStore:
        stores.append(FaultStore(open_store(url, options)))
        return stores[0]

    failures: list[BaseException] = []
    with (
        mock.patch.object(nodes.embedded, "open_store", opened),
        mock.patch.object(nodes.embedded, "prove_store", return_value=None),
        mock.patch.object(nodes.embedded, "ANSWER_SECONDS_MAX", SHORT_SECONDS),
        mock.patch.object(nodes.appender, "ANSWER_SECONDS_MAX", SHORT_SECONDS),
    ):
        async with EmbeddedBackend(settings, settings.budgets(), failures.append) as backend:
            coalescer = Coalescer(backend, lambda: ReferenceParser(ParserLimits()), Metrics())
            try:
                yield Node(backend, coalescer, stores[0])
            finally:
                await coalescer.aclose()
    assert not failures


def test_a_write_to_a_silent_store_is_answered_unknown_and_may_stand(tmp_path: Path) -> None:
    async def main() -> None:
        async with node_at(tmp_path, shards=1) as node:
            await node.write("cpu f=1 1")
            node.store.arm(Fault.LOST_REQUEST, match="logs/1/*", times=FOR_EVER)
            async with asyncio.timeout(20):
                with pytest.raises(OutcomeUnknown, match="has not answered"):
                    await node.write("cpu f=2 2")
                with pytest.raises(StorageError):
                    await node.write("cpu f=3 3")
        async with node_at(tmp_path) as node:
            assert await node.count("cpu") in (1, 2, 3)

    asyncio.run(main())


def test_a_query_and_a_change_of_a_silent_catalog_are_answered(tmp_path: Path) -> None:
    async def main() -> None:
        async with node_at(tmp_path, shards=1) as node:
            await node.write("cpu f=1 1")
            node.store.arm(Fault.LOST_REQUEST, match="logs/0/*", times=FOR_EVER)
            async with asyncio.timeout(20):
                with pytest.raises(OutcomeUnknown, match="the change may stand"):
                    await node.backend.alter([CreateDatabase("other")], ANYONE)
                with pytest.raises(StoreUnavailable, match="has not answered"):
                    await node.count("cpu")

    asyncio.run(main())


def test_rows_for_a_good_shard_stand_beside_rows_for_a_damaged_one(tmp_path: Path) -> None:
    async def main() -> None:
        async with node_at(tmp_path) as node:
            await node.write("a f=1 1\nb f=1 1")  # one table on each shard
            of_b = node.backend.catalog.table("db", "b")
            assert of_b is not None
        damaged = of_b.partitions[0].log_id
        newest = max((tmp_path / "store" / "logs" / str(damaged)).iterdir())
        newest.write_bytes(b"torn")
        async with node_at(tmp_path) as node:
            outcomes = await asyncio.gather(
                node.write("a f=2 2"), node.write("b f=2 2"), node.write("a f=3 3\nb f=3 3"), return_exceptions=True
            )
            assert outcomes[0] is None
            assert isinstance(outcomes[1], ShardClosed)
            assert isinstance(outcomes[2], ShardClosed)
            assert await node.count("a") == 3
            with pytest.raises(ShardClosed):
                await node.count("b")

    asyncio.run(main())
