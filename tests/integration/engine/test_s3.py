"""The same snapshots from an S3 server: explicit files, nothing listed, missing ones noticed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.engine import Engine, EngineLimits
from engine.ladder import LadderLimits
from engine.worker import QueryWorker, WorkerSetup, this_build
from storage.errors import SnapshotTooOld
from storage.objects import CreateOutcome, open_store
from tests.harness.queries import World, sorted_rows
from tests.harness.s3server import S3Server, moto_server
from tests.harness.stages import LocalWorkers

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

    from engine.ladder import Workers


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


class Bucket:
    """A world whose files were copied into a bucket."""

    def __init__(self, server: S3Server, world: World) -> None:
        self.world = world
        self.url = server.new_store()
        self.options = server.options
        self.store = open_store(self.url, self.options)
        for file in world.part().files:
            data = memoryview((world.folder / file.path).read_bytes())
            assert self.store.create(file.path, [data]) is CreateOutcome.CREATED

    def run(
        self,
        work: Callable[[Engine], Coroutine[Any, Any, Any]],
        workers: Workers | None = None,
        query_bytes_max: int = 0,
    ) -> Any:
        async def main() -> Any:
            limits = EngineLimits(64 * 2**20, ladder=LadderLimits(1, 1, 1), query_bytes_max=query_bytes_max)
            engine = Engine(self.url, limits, self.options, workers=workers)
            try:
                return await work(engine)
            finally:
                await engine.close()

        try:
            return asyncio.run(main())
        finally:
            self.store.close()


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> Bucket:
    world = World(tmp_path)
    world.add_file([{"time": t, "host": "a", "usage": t} for t in range(100)])
    world.add_file([{"time": t, "host": "a", "usage": -t} for t in range(50, 150)])
    world.add_tail([{"time": t, "host": "a", "usage": 0} for t in range(140, 160)])
    return Bucket(s3, world)


@pytest.mark.parametrize("query_bytes_max", [0, 2**24])
def test_files_are_read_from_the_bucket_and_merged(bucket: Bucket, query_bytes_max: int) -> None:
    async def ask(engine: Engine) -> None:
        rows = await bucket.world.rows(engine, "SELECT * FROM cpu")
        assert sorted_rows(rows) == sorted_rows(bucket.world.expected())

    bucket.run(ask, query_bytes_max=query_bytes_max)


def test_a_missing_object_is_not_an_empty_one(bucket: Bucket) -> None:
    async def ask(engine: Engine) -> None:
        assert await bucket.world.rows(engine, "SELECT count(*) AS n FROM cpu") == [{"n": 160}]
        bucket.store.delete(bucket.world.part().files[0].path)
        for statement in ("SELECT count(*) AS n FROM cpu", "SELECT * FROM cpu", "SELECT max(usage) FROM cpu LIMIT 1"):
            with pytest.raises(SnapshotTooOld, match="gone"):
                await bucket.world.rows(engine, statement)

    bucket.run(ask)


def test_workers_read_the_bucket_too(bucket: Bucket) -> None:
    name = bucket.url.removeprefix("s3://").partition("/")[0]
    worker = QueryWorker(WorkerSetup(this_build(), 64 * 2**20, bucket=name, s3=bucket.options, owns_process=False))
    workers = LocalWorkers(context=worker._context)

    async def ask(engine: Engine) -> None:
        assert await bucket.world.rows(engine, "SELECT host, count(*) AS n FROM cpu GROUP BY host") == [
            {"host": "a", "n": 160}
        ]

    bucket.run(ask, workers)
    assert any(b"s3://" in task.plan for task in workers.tasks)
