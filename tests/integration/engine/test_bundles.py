"""Slices of bundles answer as files of their own would: alone, overlapping, with deletes, cached, and on every rung
(LOG L25, FORMAT F18)."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import TYPE_CHECKING, Any

import pytest

from engine.engine import Engine, EngineLimits
from engine.session import new_context, set_option
from storage.deletes import RangeDelete, TagValues
from storage.objects import CreateOutcome, open_store
from storage.schema import OP_COLUMN, Op, TypeKind
from tests.harness.queries import Row, World, make_table, sorted_rows
from tests.harness.s3server import S3Server, moto_server
from tests.harness.stages import LocalWorkers
from tests.integration.engine.test_distribution import LIMITS, Held

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from datafusion import SessionContext

    from engine.ladder import LadderLimits

FIELDS = {"a": TypeKind.INT64, "b": TypeKind.FLOAT64}
TABLES = tuple(make_table(name, ("host", "zone"), FIELDS, at) for at, name in enumerate("mno", 1))
STATEMENTS = (
    "SELECT * FROM m",
    "SELECT host, count(*) AS n, sum(a) AS a, min(time) AS first FROM m GROUP BY host",
    "SELECT count(*) AS n FROM m WHERE time >= to_timestamp_nanos(30) AND time < to_timestamp_nanos(60)",
    "SELECT count(*) AS n FROM m WHERE host = 'x' AND zone IS NULL",
    "SELECT m.a, n.a AS other FROM m JOIN n ON m.time = n.time AND m.host = n.host",
)


def some_rows(chooser: random.Random, low: int, with_ops: bool) -> list[Row]:
    rows = []
    for _ in range(chooser.randint(1, 12)):
        row: Row = {"time": low + chooser.randrange(40), "host": chooser.choice("xyz")}
        if chooser.random() < 0.4:
            row["zone"] = chooser.choice(["1", "ü"])
        if with_ops and chooser.random() < 0.2:
            row[OP_COLUMN] = Op.DELETE.code
        else:
            row |= {name: chooser.randrange(100) for name in chooser.sample("ab", chooser.randint(1, 2))}
        rows.append(row)
    return rows


def filled(folder: Path, seed: int, with_deletes: bool = False) -> World:
    """Three tables of two partitions: slices, some files of their own, and a tail."""
    chooser, world = random.Random(seed), World(folder, *TABLES)
    for step in range(6):
        for table in TABLES:
            for partition in (0, 1):
                world.add_tail(some_rows(chooser, 15 * step, with_deletes), table, partition)
                if with_deletes and chooser.random() < 0.3:
                    low = chooser.randrange(90)
                    world.add_delete(RangeDelete(low, low + 9, (TagValues(1, ("x",)),)), table, partition)
        if chooser.random() < 0.3:
            world.checkpoint(TABLES[0], 1)
        world.bundle()
    for table in TABLES:
        world.add_tail(some_rows(chooser, 70, with_deletes), table, 0)
    return world


@pytest.mark.parametrize("with_deletes", [False, True], ids=["plain", "deletes"])
@pytest.mark.parametrize("seed", range(4))
def test_every_answer_is_that_of_the_rows_as_they_were_written(tmp_path: Path, seed: int, with_deletes: bool) -> None:
    world = filled(tmp_path, seed, with_deletes)
    assert sum(file.is_slice for file in world.part(TABLES[0]).files) == 6
    for table in TABLES:
        assert sorted_rows(world.ask(f"SELECT * FROM {table.name}")) == sorted_rows(world.expected(table))


def test_rows_of_a_slice_that_is_not_named_any_more_are_not_read(tmp_path: Path) -> None:
    """They stay in the object as long as others name it (L19)."""
    world = World(tmp_path, *TABLES)
    for partition in (0, 1, 2):
        world.add_tail([{"time": partition, "host": "x", "a": partition}], None, partition)
    world.bundle()
    world.part(None, 1).files.clear()
    assert sorted(row["a"] for row in world.ask("SELECT a FROM m")) == [0, 2]
    assert world.ask("SELECT count(*) AS n FROM m WHERE time = to_timestamp_nanos(1)") == [{"n": 0}]


@pytest.mark.parametrize("pushdown", ["true", "false"])
def test_a_column_that_came_later_may_have_a_namesake_in_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pushdown: str
) -> None:
    """Of another type, in a table that shared the object: its values are no numbers, and nobody's who asks.

    Whether a scan leaves out others' rows before or after it has turned their values is not for answers to rest on.
    """

    def made(*arguments: Any) -> SessionContext:
        context = new_context(*arguments)
        set_option(context, "execution.parquet.pushdown_filters", pushdown)
        return context

    monkeypatch.setattr("engine.planner.new_context", made)
    texts, numbers = {"v": TypeKind.STRING}, {"v": TypeKind.INT64}
    kinds = {"f": TypeKind.FLOAT64, "i": TypeKind.INT64, "u": TypeKind.UINT64, "b": TypeKind.BOOL, "s": TypeKind.STRING}
    old, other = make_table("m", ("host",), kinds), make_table("n", ("host",), kinds | texts, 2)
    world = World(tmp_path, old, other)
    values = {"f": 0.1 + 0.2, "i": -(2**63), "u": 2**64 - 1, "b": True, "s": "17"}
    world.add_tail([{"time": 1, "host": "x"} | values, {"time": 2, "host": "x", "f": float("inf")}], old)
    world.add_tail([{"time": 1, "host": "y", "v": "no number"}, {"time": 2, "host": "y", "s": "t"}], other)
    world.bundle()
    assert len({file.path for table in world.tables for file in world.part(table).files}) == 1
    new = dataclasses.replace(make_table("m", ("host",), kinds | numbers), version=2)
    world.tables = (new, other)
    assert sorted_rows(world.ask("SELECT * FROM m")) == sorted_rows(world.expected(new))
    assert world.ask("SELECT count(*) AS n FROM m WHERE v > 5") == [{"n": 0}]
    world.add_tail([{"time": 1, "host": "x", "v": 6}], new)
    assert world.ask("SELECT v, i, u FROM m WHERE v > 5") == [{"v": 6, "i": -(2**63), "u": 2**64 - 1}]
    assert sorted_rows(world.ask("SELECT * FROM m")) == sorted_rows(world.expected(new))


def test_users_do_not_see_whose_rows_they_are(tmp_path: Path) -> None:
    world = filled(tmp_path, 2)
    assert set(world.ask("SELECT * FROM m LIMIT 1")[0]) <= {"time", "host", "zone", "a", "b"}
    columns = world.ask("SELECT column_name FROM information_schema.columns WHERE table_name = 'm'")
    assert sorted(row["column_name"] for row in columns) == ["a", "b", "host", "time", "zone"]


@LIMITS
@pytest.mark.parametrize(("statement", "version"), [*((text, 1) for text in STATEMENTS[1:]), (STATEMENTS[1], 2)])
def test_slices_are_the_same_on_every_rung(tmp_path: Path, ladder: LadderLimits, statement: str, version: int) -> None:
    """Also those that are read as text."""
    world, workers = filled(tmp_path, 3, with_deletes=True), LocalWorkers()
    world.tables = tuple(dataclasses.replace(table, version=version) for table in TABLES)
    (got,) = Held(world, workers, ladder).ask(statement)
    assert sorted_rows(got) == sorted_rows(world.ask(statement))
    assert workers.runs


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


def test_bundles_of_a_bucket_are_read_and_cached(s3: S3Server, tmp_path: Path) -> None:
    """What an entry says of bytes is a share; the cache holds whole objects, one for all of their slices."""
    world = filled(tmp_path / "world", 4)
    url = s3.new_store()
    store = open_store(url, s3.options)
    files = {file.path: file for table in TABLES for part in world.of(table).partitions for file in part.files}
    for path in files:
        assert store.create(path, [memoryview((world.folder / path).read_bytes())]) is CreateOutcome.CREATED
    sizes = {path: (world.folder / path).stat().st_size for path in files}

    async def ask(engine: Engine) -> None:
        for table in (*TABLES, *TABLES):
            rows = await world.rows(engine, f"SELECT * FROM {table.name}")
            assert sorted_rows(rows) == sorted_rows(world.expected(table))
        before = len(s3.requests)
        await world.rows(engine, "SELECT * FROM m")
        assert not [path for _, path in s3.requests[before:] if path.endswith(".parquet")]
        assert engine.cache_counters.bytes == sum(sizes.values())
        assert engine.cache_counters.fetched == len(sizes)

    async def main(cache_bytes: int, work: Any) -> None:
        limits = EngineLimits(64 * 2**20, cache_folder=tmp_path / "cache", cache_bytes_max=cache_bytes)
        engine = Engine(url, limits, s3.options)
        try:
            await work(engine)
        finally:
            await engine.close()

    async def without(engine: Engine) -> None:
        assert sorted_rows(await world.rows(engine, "SELECT * FROM n")) == sorted_rows(world.expected(TABLES[1]))

    asyncio.run(main(2**30, ask))
    asyncio.run(main(0, without))
    store.close()


def test_a_plan_of_a_hundred_slices_is_made_fast(tmp_path: Path) -> None:
    """They are one scan for each partition, and not one for each slice."""
    world = World(tmp_path, *TABLES)
    for step in range(100):
        for partition in (0, 1):
            world.add_tail([{"time": step, "host": "x", "a": step}], None, partition)
        world.bundle()
    plan = "\n".join(str(row["plan"]) for row in world.ask("EXPLAIN SELECT sum(a) AS a FROM m"))
    assert plan.count("DataSourceExec") == 2
    assert world.ask("SELECT sum(a) AS a, count(*) AS n FROM m") == [{"a": 9900, "n": 200}]
