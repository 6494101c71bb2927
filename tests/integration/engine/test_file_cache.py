"""Files of a bucket kept on this machine's disk: what the store is asked, and that harm never shows (LOG L16, L20)."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest

from engine.engine import Engine, EngineLimits
from engine.errors import QueryTimeout, StatementFailed
from engine.planner import Planner
from storage import filecache
from storage.errors import SnapshotTooOld
from storage.objects import CreateOutcome, open_store
from tests.harness.queries import World, sorted_rows
from tests.harness.s3server import S3Server, moto_server
from tests.harness.waiting import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator
    from pathlib import Path

    from storage.filecache import CacheCounters

ALL = "SELECT * FROM cpu"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


class Bucket:
    """A world whose files are copied into a bucket, and engines over it that share one cache folder."""

    def __init__(self, server: S3Server, world: World, folder: Path) -> None:
        self.world = world
        self.folder = folder
        self.server = server
        self.url = server.new_store()
        self.store = open_store(self.url, server.options)
        self.copied: set[str] = set()

    def copy(self) -> None:
        """Put the world's new files into the bucket."""
        for file in self.world.part().files:
            if file.path not in self.copied:
                data = memoryview((self.world.folder / file.path).read_bytes())
                assert self.store.create(file.path, [data]) is CreateOutcome.CREATED
                self.copied.add(file.path)

    def run(self, work: Callable[[Engine], Coroutine[Any, Any, Any]], cache_bytes: int = 2**30) -> None:
        async def main() -> None:
            limits = EngineLimits(64 * 2**20, cache_folder=self.folder, cache_bytes_max=cache_bytes)
            engine = Engine(self.url, limits, self.server.options)
            try:
                await work(engine)
            finally:
                await engine.close()

        asyncio.run(main())

    async def right(self, engine: Engine, statement: str = ALL) -> int:
        """Ask for all rows, which must be the right ones; how many requests for files the store got."""
        before = len(self.server.requests)
        rows = await self.world.rows(engine, statement)
        assert sorted_rows(rows) == sorted_rows(self.world.expected())
        return sum(1 for _, path in self.server.requests[before:] if path.endswith(".parquet"))

    def cached(self) -> list[Path]:
        return sorted(self.folder.iterdir())


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Iterator[Bucket]:
    world = World(tmp_path / "world")
    world.add_file([{"time": t, "host": f"h{t % 7}", "usage": t} for t in range(1000)])
    world.add_file([{"time": t, "host": f"h{t % 7}", "usage": -t} for t in range(500, 1500)])
    world.add_file([{"time": t, "host": f"h{t % 7}", "usage": t} for t in range(2000, 2500)])
    world.add_tail([{"time": t, "host": "h0", "usage": 0} for t in range(1400, 1600)])
    found = Bucket(s3, world, tmp_path / "cache")
    found.copy()
    yield found
    found.store.close()


def test_a_second_statement_asks_the_store_for_nothing(bucket: Bucket) -> None:
    async def ask(engine: Engine) -> None:
        assert await bucket.right(engine) == 3, "one request for each file"
        assert await bucket.right(engine) == 0
        assert await bucket.right(engine, "SELECT * FROM cpu ORDER BY usage") == 0
        counters = engine.cache_counters
        assert (counters.files, counters.misses, counters.hits, counters.fetched) == (3, 3, 6, 3)

    bucket.run(ask)


def test_the_cache_survives_a_restart(bucket: Bucket) -> None:
    async def first(engine: Engine) -> None:
        await bucket.right(engine)

    async def second(engine: Engine) -> None:
        assert await bucket.right(engine) == 0
        assert engine.cache_counters.bytes == sum(file.bytes for file in bucket.world.part().files)

    bucket.run(first)
    bucket.run(second)


def test_a_new_file_beside_cached_ones(bucket: Bucket) -> None:
    async def ask(engine: Engine) -> None:
        await bucket.right(engine)
        bucket.world.add_file([{"time": t, "host": "h1", "usage": 1} for t in range(100, 3000, 7)])
        bucket.copy()
        assert await bucket.right(engine) == 1
        assert await bucket.right(engine) == 0

    bucket.run(ask)


def test_files_in_the_cache_and_in_the_store_are_one_table(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some are cached, the rest is not brought in: alone, and merged with others."""

    async def ask(engine: Engine) -> None:
        await bucket.world.rows(engine, "SELECT count(*) FROM cpu WHERE time < '1970-01-01T00:00:00.000000400'")
        assert engine.cache_counters.files == 1
        await bucket.world.rows(engine, "SELECT count(*) FROM cpu WHERE time > '1970-01-01T00:00:00.000001999'")
        monkeypatch.setattr(filecache, "STATEMENT_SHARE", 0.0)
        assert await bucket.right(engine) > 0
        assert await bucket.right(engine) > 0
        assert engine.cache_counters.files == 2

    bucket.run(ask)


def test_without_a_cache_nothing_is_kept(bucket: Bucket) -> None:
    async def ask(engine: Engine) -> None:
        assert await bucket.right(engine) > 0
        assert await bucket.right(engine) > 0
        assert engine.cache_counters == type(engine.cache_counters)()

    bucket.run(ask, cache_bytes=0)
    assert not bucket.folder.exists()


def test_a_cached_file_that_the_store_has_collected_answers_its_snapshot(bucket: Bucket) -> None:
    """It never changes (L20), so its rows are what the snapshot says; one that is nowhere is never empty (L16)."""

    async def ask(engine: Engine) -> None:
        await bucket.right(engine)
        for file in bucket.world.part().files:
            bucket.store.delete(file.path)
        assert await bucket.right(engine) == 0
        (bucket.folder / bucket.cached()[0].name).unlink()
        for statement in ("SELECT count(*) AS n FROM cpu", ALL, "SELECT max(usage) FROM cpu LIMIT 1"):
            with pytest.raises(SnapshotTooOld, match="gone"):
                await bucket.world.rows(engine, statement)

    bucket.run(ask)


def overwrite(path: Path, harm: str) -> None:
    data = bytearray(path.read_bytes())
    if harm == "gone":
        path.unlink()
        return
    if harm == "bytes":
        for at in range(4, len(data) - 4, 3):
            data[at] ^= 0x55
    elif harm == "footer":
        data[-8:-4] = b"\xff\xff\xff\x7f"
    elif harm == "zeros":
        data[:] = bytes(len(data))
    path.write_bytes({"truncated": bytes(data[: len(data) // 2]), "empty": b""}.get(harm, bytes(data)))


@pytest.mark.parametrize(
    ("harm", "is_restart"),
    [*((harm, False) for harm in ("gone", "truncated", "empty", "bytes", "footer", "zeros")), ("bytes", True)],
)
def test_damage_to_cached_files_never_shows(bucket: Bucket, harm: str, is_restart: bool) -> None:
    async def first(engine: Engine) -> None:
        await bucket.right(engine)
        if not is_restart:
            await second(engine)

    async def second(engine: Engine) -> None:
        for path in bucket.cached():
            overwrite(path, harm)
        assert await bucket.right(engine) == 3, "each is fetched again"
        assert await bucket.right(engine) == 0
        assert await bucket.world.rows(engine, "SELECT count(*) AS n FROM cpu") == [{"n": 2185}]

    bucket.run(first)
    if is_restart:
        bucket.run(second)


def test_a_statement_that_fails_by_itself_is_not_run_again(bucket: Bucket) -> None:
    async def ask(engine: Engine) -> None:
        await bucket.right(engine)
        before = len(bucket.world.asked)
        with pytest.raises(StatementFailed):
            await bucket.world.rows(engine, "SELECT 1 / (usage - usage) FROM cpu")
        assert len(bucket.world.asked) == before + 1
        assert await bucket.right(engine) == 0
        assert engine.cache_counters.damaged == 0

    bucket.run(ask)


def test_files_of_a_running_statement_stay(bucket: Bucket) -> None:
    """DataFusion opens them late: evicted before, they would be missing."""
    size = sum(file.bytes for file in bucket.world.part().files)

    async def ask(engine: Engine) -> None:
        await bucket.right(engine)
        before = bucket.cached()
        stream = await bucket.world.start(engine, ALL)
        for at in range(10_000, 24_000, 1000):
            bucket.world.add_file([{"time": at + t, "host": f"h{t % 7}", "usage": t} for t in range(900)])
            bucket.copy()
            await bucket.world.rows(engine, f"SELECT * FROM cpu WHERE time >= to_timestamp_nanos({at})")
        assert engine.cache_counters.evicted > 0
        assert set(before) <= set(bucket.cached())
        await stream.aclose()
        for at in range(10_000, 24_000, 1000):
            only = f"time >= to_timestamp_nanos({at}) AND time < to_timestamp_nanos({at + 1000})"
            await bucket.world.rows(engine, f"SELECT * FROM cpu WHERE {only}")
        assert not set(before) <= set(bucket.cached()), "released, they may go"

    bucket.run(ask, cache_bytes=4 * size)


def test_a_plan_that_outlives_its_statement_lets_the_files_go(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end = threading.Event()
    check = Planner._check_files

    def slow(planner: Planner, paths: Collection[str]) -> None:
        assert may_end.wait(20)
        check(planner, paths)

    async def ask(engine: Engine) -> None:
        await bucket.right(engine)
        monkeypatch.setattr(Planner, "_check_files", slow)
        with pytest.raises(QueryTimeout):
            await bucket.world.rows(engine, ALL, timeout_seconds=0.2)
        cache = engine._root._cache
        assert cache is not None
        assert {entry.pins for entry in cache._entries.values()} == {1}
        may_end.set()
        await until(lambda: {entry.pins for entry in cache._entries.values()} == {0})

    bucket.run(ask)


def test_concurrent_statements_fetch_a_file_once(bucket: Bucket) -> None:
    async def ask(engine: Engine) -> None:
        asked: list[Awaitable[int]] = [bucket.right(engine) for _ in range(8)]
        before = len(bucket.server.requests)
        await asyncio.gather(*asked)
        paths = [path for method, path in bucket.server.requests[before:] if method == "GET" and "parquet" in path]
        assert len(paths) == len(set(paths)) == 3
        counters: CacheCounters = engine.cache_counters
        assert counters.fetched == 3

    bucket.run(ask)
