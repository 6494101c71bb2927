"""The same snapshots from an S3 server: explicit files, nothing listed, missing ones noticed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.engine import Engine, EngineLimits
from storage.errors import SnapshotTooOld
from storage.objects import CreateOutcome, open_store
from tests.harness.queries import World, sorted_rows
from tests.harness.s3server import S3Server, moto_server

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path


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

    def run(self, work: Callable[[Engine], Coroutine[Any, Any, Any]]) -> Any:
        async def main() -> Any:
            engine = Engine(self.url, EngineLimits(64 * 2**20), self.options)
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


def test_files_are_read_from_the_bucket_and_merged(bucket: Bucket) -> None:
    async def ask(engine: Engine) -> None:
        rows = await bucket.world.rows(engine, "SELECT * FROM cpu")
        assert sorted_rows(rows) == sorted_rows(bucket.world.expected())

    bucket.run(ask)


def test_a_missing_object_is_not_an_empty_one(bucket: Bucket) -> None:
    async def ask(engine: Engine) -> None:
        assert await bucket.world.rows(engine, "SELECT count(*) AS n FROM cpu") == [{"n": 160}]
        bucket.store.delete(bucket.world.part().files[0].path)
        for statement in ("SELECT count(*) AS n FROM cpu", "SELECT * FROM cpu", "SELECT max(usage) FROM cpu LIMIT 1"):
            with pytest.raises(SnapshotTooOld, match="gone"):
                await bucket.world.rows(engine, statement)

    bucket.run(ask)
