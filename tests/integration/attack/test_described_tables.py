"""Rows that a statement lost because one of its words made it a statement about the schema."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.errors import EngineError
from storage.schema import TypeKind
from tests.harness.queries import World, make_table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> World:
    table = make_table("my table")
    made = World(tmp_path, table)
    made.add_file([{"time": 1, "host": "a", "usage": 1}, {"time": 2, "host": "b", "usage": 2}])
    made.add_tail([{"time": 3, "host": "a", "usage": 3}])
    return made


@pytest.mark.parametrize("name", ['"my table"', "'my table'"])
def test_a_descending_query_reads_the_rows_of_a_quoted_name(world: World, name: str) -> None:
    assert world.ask(f"SELECT count(*) AS n FROM {name} ORDER BY n DESC") == [{"n": 3}]


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) AS n FROM `my table` ORDER BY n DESC",
        "SELECT (SELECT count(*) FROM `my table`) AS n FROM information_schema.tables LIMIT 1",
        "SELECT count(*) AS n FROM iox.`my table`, information_schema.tables",
        "SELECT count(*) AS n FROM public.iox.'my table', information_schema.tables",
    ],
)
def test_a_name_that_is_not_recognized_is_refused_and_never_read_as_an_empty_table(
    world: World, statement: str
) -> None:
    with pytest.raises(EngineError, match="my table"):
        world.ask(statement)


def test_a_descending_sort_spills_like_an_ascending_one(tmp_path: Path) -> None:
    """It once ran in the small pool of statements about the schema, which does not spill."""
    world = World(tmp_path / "store", make_table(fields={"s": TypeKind.STRING}))
    for part in range(6):
        rows = range(part * 20_000, (part + 1) * 20_000)
        world.add_file([{"time": n, "host": "a", "s": f"{n:01000d}"} for n in rows])
    spill = tmp_path / "spill"
    spill.mkdir()
    limits = {"spill_folder": spill, "target_partitions": 1}
    first, *rest = world.ask("SELECT s FROM cpu ORDER BY s DESC", limits)
    assert first == {"s": f"{119_999:01000d}"}
    assert len(rest) == 119_999
