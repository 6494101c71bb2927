"""What a statement does not read: row groups without a tag's value, footers that were read before, files twice."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from engine.engine import Engine, EngineLimits
from engine.errors import StatementFailed
from storage import datafile
from storage.objects import CreateOutcome, open_store
from tests.harness.queries import World, make_table
from tests.harness.s3server import S3Server, moto_server

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROWS = 4000
GROUP_ROWS = 500


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two files of eight row groups: sorted by host, of which there are 20, then by container; each is of one host."""
    monkeypatch.setattr(datafile, "ROW_GROUP_ROWS", GROUP_ROWS)
    made = World(tmp_path / "world", make_table(tags=("host", "container")))
    for low in (0, ROWS):
        made.add_file(
            [{"time": low + n, "host": f"h{n % 20:02}", "container": container(n), "usage": n} for n in range(ROWS)]
        )
    return made


def container(n: int) -> str:
    """Of a row's host and one of 50 in it, in no order."""
    return f"{((n % 20) * 50 + n // 20 % 50) * 7919 % 1009:04d}"


def test_what_a_scan_cannot_compute_is_the_statement_s_fault(world: World) -> None:
    with pytest.raises(StatementFailed, match="a condition cannot be computed: division by zero"):
        world.ask("SELECT * FROM cpu WHERE 1 / usage > 0")
    with pytest.raises(StatementFailed, match="a condition cannot be computed: Cannot cast string 'h00' to value of"):
        world.ask("SELECT * FROM cpu WHERE CAST(host AS INT) > 0")


def pruned(world: World, by: str, statement: str) -> tuple[int, int]:
    """How many row groups were looked at and how many were left, by one kind of statistics."""
    plan = "\n".join(str(row["plan"]) for row in world.ask(f"EXPLAIN ANALYZE {statement}"))
    found = re.search(rf"row_groups_pruned_{by}=(\d+) total → (\d+) matched", plan)
    assert found is not None, plan
    return int(found[1]), int(found[2])


def test_row_groups_without_a_tags_value_are_left_out(world: World) -> None:
    """Every row group has containers from nearly 0000 to nearly 1008: their statistics say nothing."""
    statement = "SELECT * FROM cpu WHERE container = '{}'"
    there, absent = container(777), "0500x"
    wanted = sum(1 for row in world.expected() if row["container"] == there)
    assert len(world.ask(statement.format(there))) == wanted == 8
    assert world.ask(statement.format(absent)) == []
    assert pruned(world, "statistics", statement.format(absent)) == (16, 16)
    total, left = pruned(world, "bloom_filter", statement.format(absent))
    assert total == 16
    assert left <= 2, "one in twenty may be let through"
    total, left = pruned(world, "bloom_filter", statement.format(there))
    assert 2 <= left <= 5, "it is in one or two of each file"


def test_the_first_tag_is_pruned_by_statistics(world: World) -> None:
    total, left = pruned(world, "statistics", "SELECT * FROM cpu WHERE host = 'h07'")
    assert total == 16
    assert left <= 4


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with moto_server() as server:
        yield server


def test_footers_are_read_once_and_files_are_never_listed(s3: S3Server, world: World) -> None:
    """Without copies on the disk: the second statement asks for data alone, and whether the files are there (L16)."""
    url = s3.new_store()
    store = open_store(url, s3.options)
    for file in world.part().files:
        assert store.create(file.path, [memoryview((world.folder / file.path).read_bytes())]) is CreateOutcome.CREATED

    async def asked(engine: Engine, statement: str) -> Counter[str]:
        before = len(s3.requests)
        await world.rows(engine, statement)
        return Counter(method for method, _ in s3.requests[before:])

    async def ask() -> None:
        engine = Engine(url, EngineLimits(64 * 2**20), s3.options)
        try:
            first = await asked(engine, "SELECT count(*) AS n, min(time) AS t FROM cpu")
            again = await asked(engine, "SELECT count(*) AS n, min(time) AS t FROM cpu")
            assert first["GET"] > 0
            assert again["GET"] == 0, "what footers say was asked for twice"
            data = await asked(engine, "SELECT sum(usage) AS s FROM cpu")
            assert data == await asked(engine, "SELECT sum(usage) AS s FROM cpu")
            assert data["GET"] == 2 * ROWS // GROUP_ROWS, "one range of each row group: no footer"
            assert {path for method, path in s3.requests if method == "GET"} <= {
                f"{url.removeprefix('s3:/')}/{file.path}" for file in world.part().files
            }, "nothing was listed"
        finally:
            await engine.close()

    try:
        asyncio.run(ask())
    finally:
        store.close()


def test_a_plan_of_a_snapshot_is_kept(world: World) -> None:
    """The list of a table's files is made into a view once, not for each statement (`engine.views.Views`)."""

    async def ask(engine: Engine) -> Any:
        await world.rows(engine, "SELECT max(usage) AS m FROM cpu")
        views = engine._planner._views
        assert views is not None
        (before,) = [view for _, view, _ in views._kept.values()]
        await world.rows(engine, "SELECT min(usage) AS m FROM cpu")
        assert [view for _, view, _ in views._kept.values()] == [before]
        world.add_tail([{"time": 1, "host": "h0", "container": "x", "usage": 1}])
        await world.rows(engine, "SELECT min(usage) AS m FROM cpu")
        assert [view for _, view, _ in views._kept.values()] != [before]

    world.run(ask)
