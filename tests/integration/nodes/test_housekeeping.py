"""Files of expired and of dropped rows leave the list, then the disk; what can be seen stays (LOG L16, L31, L36)."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

import nodes.housekeeping
from nodes.backend import DropTable, Principal, QueryRequest, SetRetention, SetRetentionBytes
from nodes.embedded import EmbeddedBackend
from nodes.gateway.coalesce import Coalescer
from nodes.metrics import Metrics
from nodes.settings_model import DataSettings, LogSettings, Settings
from storage.cutoffrecorder import CutoffRecorder
from storage.errors import StoreFull
from storage.schema import DataFile
from storage.store import data_path
from tests.harness.gateway import on_loop
from tests.harness.waiting import until
from wire.lineprotocol.model import ParserLimits, Precision
from wire.lineprotocol.reference import ReferenceParser

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ANYONE = Principal()
HOUR = 3600 * 10**9


class Node:
    """A backend in this process, with one shard, whose files may go at once."""

    def __init__(self, backend: EmbeddedBackend, coalescer: Coalescer, folder: Path) -> None:
        self.backend = backend
        self._coalescer = coalescer
        self._folder = folder

    async def write(self, table: str, *ages_hours: float) -> None:
        """One row of each age, in one file of their own."""
        now = time.time_ns()
        await self.lines("".join(f"{table},k=a v=1i {now - int(age * HOUR)}\n" for age in ages_hours))

    async def lines(self, body: str) -> None:
        """These lines, in one file of their own."""
        await self._coalescer.write(
            "db", Precision.NANOSECOND, body.encode(), is_all_or_nothing=False, principal=ANYONE
        )
        await self.backend.checkpoint()

    async def count(self, table: str) -> int:
        result = await self.backend.query(QueryRequest("db", f"SELECT count(*) AS n FROM {table}"), ANYONE)
        return sum([batch.column(0)[0].as_py() async for batch in result])

    async def let_go(self) -> int:
        return await self.backend._housekeeper.let_go(self.backend._shard(1))

    def on_disk(self) -> int:
        return len(list(self._folder.glob("**/*.parquet")))


@contextlib.asynccontextmanager
async def node_at(folder: Path) -> AsyncIterator[Node]:
    settings = Settings(data=DataSettings(dir=str(folder)), log=LogSettings(shards=1))
    failures: list[BaseException] = []
    async with EmbeddedBackend(settings, settings.budgets(), failures.append) as backend:
        shard = backend._shard(1)
        shard.limits = dataclasses.replace(shard.limits, grace_seconds=0.0)
        coalescer = Coalescer(backend, lambda: ReferenceParser(ParserLimits()), Metrics())
        try:
            yield Node(backend, coalescer, folder)
        finally:
            await coalescer.aclose()
    assert not failures


def test_expired_rows(tmp_path: Path) -> None:
    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            await node.write("m", 30, 29)
            await node.write("m", 30, 0.5)
            await node.write("m", 0.25)
            assert await node.let_go() == 0, "rows are kept for ever"
            await node.backend.alter([SetRetention("db", HOUR)], ANYONE)
            assert await node.let_go() == 1, "a file goes only when all of its rows have expired"
            assert await node.count("m") == 2
            assert await node.let_go() == 0
            await node.backend.alter([SetRetention("db", None)], ANYONE)
            assert await node.count("m") == 3, "what was let go does not come back, the other old row does"

    run()


def test_dropped_rows_and_what_is_on_the_disk(tmp_path: Path) -> None:
    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            await node.write("gone", 1, 2)
            await node.write("kept", 1, 2)
            await node.backend.alter([DropTable("db", "gone")], ANYONE)
            assert (await node.let_go(), node.on_disk()) == (1, 2)
            shard = node.backend._shard(1)
            await shard.sweep()
            await shard.sweep()  # a grace after it was first seen: here none
            assert node.on_disk() == 1
            assert await node.count("kept") == 2
            assert node.backend.status().compaction.files_gone == 1
        async with node_at(tmp_path) as node:
            assert await node.count("kept") == 2, "and after a restart"

    run()


def test_l19_an_object_stays_as_long_as_one_slice_of_it_is_named(tmp_path: Path) -> None:
    """A bundle of four tables: two are dropped, the rows of one expire, and the last one keeps the object."""

    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            now = time.time_ns()
            ages = {"gone": 0.1, "gone_too": 0.1, "expired": 30, "kept": 0.1}
            await node.lines("".join(f"{table},k=a v=1i {now - int(age * HOUR)}\n" for table, age in ages.items()))
            assert node.on_disk() == 1
            shard = node.backend._shard(1)
            assert len(list(shard.state.all_files())) == 4
            await node.backend.alter([DropTable("db", "gone"), DropTable("db", "gone_too")], ANYONE)
            assert await node.let_go() == 2
            await node.backend.alter([SetRetention("db", HOUR)], ANYONE)
            assert await node.let_go() == 1
            for _ in range(3):
                await shard.sweep()
            assert node.on_disk() == 1
            assert (await node.count("kept"), await node.count("expired")) == (1, 0)
            await node.backend.alter([DropTable("db", "kept")], ANYONE)
            assert await node.let_go() == 1
            for _ in range(2):
                await shard.sweep()
            assert node.on_disk() == 0

    run()


def test_l19_were_paths_what_tells_files_apart_a_slice_would_take_the_others_along(tmp_path: Path) -> None:
    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            await node.lines(f"gone,k=a v=1i {time.time_ns()}\nkept,k=a v=1i {time.time_ns()}\n")
            await node.backend.alter([DropTable("db", "gone")], ANYONE)
            with mock.patch.object(DataFile, "identity", property(lambda file: file.path)):
                await node.let_go()
            await node.backend._shard(1).checkpoint()
            shard = node.backend._shard(1)
            assert list(shard.state.all_files()) == [], "the rule is broken here"

    run()


def test_it_is_done_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes.housekeeping, "TIDY_SECONDS", 0.02)

    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            await node.write("gone", 1, 2)
            await node.backend.alter([DropTable("db", "gone")], ANYONE)
            await until(lambda: node.on_disk() == 0)

    run()


def test_a_catalog_that_cannot_be_proved_lets_nothing_go(tmp_path: Path) -> None:
    """The period may have been cleared: then the rows are to be kept."""

    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            await node.write("m", 30)
            await node.backend.alter([SetRetention("db", HOUR)], ANYONE)
            with (
                mock.patch.object(
                    node.backend._housekeeper, "_refresh", side_effect=asyncio.CancelledError("no store")
                ),
                pytest.raises(asyncio.CancelledError),
            ):
                await node.let_go()
            assert node.on_disk() == 1
            assert node.backend._shard(1).state.partitions

    run()


def test_l25_rewritten_rows_that_are_seen_again_have_their_newest_values(tmp_path: Path) -> None:
    """In a file that reaches over the cut-off, and rewritten in one that does not."""

    async def value(node: Node) -> list[int]:
        result = await node.backend.query(QueryRequest("db", "SELECT v FROM m ORDER BY time LIMIT 1"), ANYONE)
        return [row async for batch in result for row in batch.column("v").to_pylist()]

    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            moment = time.time_ns() - 30 * HOUR
            await node.lines(f"m,k=a v=1i {moment}\nm,k=a v=1i {time.time_ns()}")
            await node.lines(f"m,k=a v=2i {moment}")
            await node.backend.alter([SetRetention("db", HOUR)], ANYONE)
            await node.let_go()
            assert await value(node) == [1]
            await node.backend.alter([SetRetention("db", None)], ANYONE)
            assert await value(node) == [2]

    run()


def test_l36_rows_that_were_written_after_the_period_was_cleared_are_kept(tmp_path: Path) -> None:
    """Also if that happens while files are looked for: acknowledged is durable."""

    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            await node.write("m", 30)
            await node.backend.alter([SetRetention("db", HOUR)], ANYONE)
            shard, record = node.backend._shard(1), CutoffRecorder.record

            async def cleared_meanwhile(*arguments: Any) -> None:
                await record(shard.cutoffs, *arguments)
                await node.backend.alter([SetRetention("db", None)], ANYONE)
                await node.write("m", 20)

            with mock.patch.object(shard.cutoffs, "record", cleared_meanwhile):
                await node.let_go()
            assert await node.count("m") == 1

    run()


def test_by_bytes_the_oldest_files_go_by_themselves_and_the_newest_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after a Checkpoint, though nobody reads and the time to tidy up is far."""
    monkeypatch.setattr(nodes.housekeeping, "LOOK_SECONDS", 0.02)

    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            await node.write("m", 9)
            shard = node.backend._shard(1)
            size = next(shard.state.all_files()).bytes
            await node.backend.alter([SetRetentionBytes("db", size * 7 // 2)], ANYONE)
            for age in (8, 7, 6, 5, 4):
                await node.write("m", age)
            await until(lambda: len(list(shard.state.all_files())) == 3)
            assert await node.count("m") == 3
            await node.backend.alter([SetRetentionBytes("db", 1)], ANYONE)
            await node.write("m", 3)
            await until(lambda: len(list(shard.state.all_files())) == 1)
            assert (await node.count("m"), node.backend.status().compaction.files_gone) == (1, 6)
            await node.backend.alter([SetRetentionBytes("db", None)], ANYONE)
            await node.write("m", 9, 1)
            assert await node.count("m") == 3, "without a limit a late row is shown"

    run()


def test_without_limits_by_bytes_files_wait_until_they_are_due(tmp_path: Path) -> None:
    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            await node.write("m", 30)
            await node.write("m", 0)
            await node.backend.alter([SetRetention("db", HOUR)], ANYONE)
            keeper, shard = node.backend._housekeeper, node.backend._shard(1)
            assert await keeper.let_go(shard, is_due=False) == 0
            assert await keeper.let_go(shard) == 1

    run()


def test_a_full_disk_and_a_defect_keep_nobody_from_sweeping(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes no new list of files either, and what the sweep deletes makes room."""
    monkeypatch.setattr(nodes.housekeeping, "TIDY_SECONDS", 0.02)

    @on_loop
    async def run() -> None:
        async with node_at(tmp_path) as node:
            await node.write("gone", 1)
            orphan = tmp_path / "store" / data_path(1, 1, 1, 1)
            orphan.parent.mkdir(parents=True, exist_ok=True)
            orphan.write_bytes(b"")
            errors = [StoreFull("full"), ZeroDivisionError(), StoreFull("full")]
            with mock.patch.object(node.backend._housekeeper, "let_go", side_effect=[*errors, *[0] * 10_000]):
                await until(lambda: not orphan.exists())
            await node.backend.alter([DropTable("db", "gone")], ANYONE)
            await until(lambda: node.on_disk() == 0)

    run()
