"""Which DELETEs are stored as they are written (LOG L26): those about tags and time, and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from engine.changes import ChangeKind, RowChange
from storage.deletes import TIME_MAX, TIME_MIN, RangeDelete, TagValues
from storage.schema import TypeKind
from tests.harness.queries import World, make_table

if TYPE_CHECKING:
    from engine.engine import Engine

HOST, RACK = 1, 2
DAY_NS = 86_400 * 10**9
A = TagValues(HOST, ("a",))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("deletes")
    made = World(folder, make_table(tags=("host", "rack"), fields={"n": TypeKind.INT64}), make_table("mem", id=2))
    made.add_file([{"time": t * DAY_NS, "host": h, "n": t} for t in range(4) for h in "ab"])
    made.add_tail([{"time": t * DAY_NS, "host": "a", "rack": "x", "n": t} for t in range(4)])
    return made


def changed(world: World, statement: str, **options: Any) -> tuple[RowChange, list[dict[str, Any]]]:
    """What the statement's rows are for, and they."""

    async def work(engine: Engine) -> Any:
        stream = await world.start(engine, statement, may_write=True, **options)
        return stream.change, [row async for batch in stream for row in batch.to_pylist()]

    change, rows = world.run(work)
    assert (change.kind, change.table) == (ChangeKind.DELETE, "cpu")
    return change, rows


@pytest.mark.parametrize(
    ("condition", "delete", "count"),
    [
        ("", RangeDelete(), 12),
        ("WHERE host = 'a'", RangeDelete(tags=(A,)), 8),
        ("WHERE 'a' = host AND rack IS NULL", RangeDelete(tags=(A, TagValues(RACK, (None,)))), 4),
        ("WHERE time >= '1970-01-02' AND time < '1970-01-03T00:00:00Z'", RangeDelete(DAY_NS, 2 * DAY_NS - 1), 3),
        ("WHERE time BETWEEN '1970-01-02' AND '1970-01-03' AND host = 'a'", RangeDelete(DAY_NS, 2 * DAY_NS, (A,)), 4),
        ("WHERE time > '1970-01-03'", RangeDelete(2 * DAY_NS + 1, TIME_MAX), 3),
        ("WHERE time = '1970-01-03'", RangeDelete(2 * DAY_NS, 2 * DAY_NS), 3),
        ("WHERE time <= to_timestamp_nanos(5)", RangeDelete(TIME_MIN, 5), 3),
        ("WHERE host IN ('b', 'a')", RangeDelete(tags=(TagValues(HOST, ("a", "b")),)), 12),
        ("WHERE host = 'a' OR host = 'z' OR host IS NULL", RangeDelete(tags=(TagValues(HOST, (None, "a", "z")),)), 8),
        ("WHERE host IN ('a', 'b') AND host IN ('a', 'c')", RangeDelete(tags=(A,)), 8),
        ("WHERE host IN ('a', 'w', 'x', 'y', 'z')",
         RangeDelete(tags=(TagValues(HOST, ("a", "w", "x", "y", "z")),)), 8),
        ("WHERE host = 'it''s'", RangeDelete(tags=(TagValues(HOST, ("it's",)),)), 0),
        ("WHERE (host = 'a') AND (rack = 'x' AND time < '2000-01-01')",
         RangeDelete(TIME_MIN, 946_684_800 * 10**9 - 1, (A, TagValues(RACK, ("x",)))), 4),
    ],
)  # fmt: skip
def test_ranges(world: World, condition: str, delete: RangeDelete, count: int) -> None:
    change, rows = changed(world, f"DELETE FROM cpu {condition}")
    assert change.delete is not None
    found = RangeDelete(
        change.delete.time_low, change.delete.time_high, tuple(sorted(change.delete.tags, key=lambda t: t.column_id))
    )
    assert found == delete
    assert rows == [{"count": count}]


def test_parameters_are_values(world: World) -> None:
    change, rows = changed(world, "DELETE FROM cpu WHERE host = $h", params={"h": "b"})
    assert change.delete == RangeDelete(tags=(TagValues(HOST, ("b",)),))
    assert rows == [{"count": 4}]


@pytest.mark.parametrize(
    ("condition", "count"),
    [
        ("n > 1", 6),
        ("host = 'a' AND n > 1", 4),
        ("host = 'a' OR rack = 'x'", 8),
        ("host <> 'a'", 4),
        ("host NOT IN ('a')", 4),
        ("host NOT IN ('a', 'w', 'x', 'y', 'z')", 4),
        ("NOT (host IN ('a', 'w', 'x', 'y', 'z'))", 4),
        ("host = 'a' OR host NOT IN ('a', 'w', 'x', 'y', 'z')", 12),
        ("host IN ('a', 'w', 'x', 'y', 'z') AND host NOT IN ('a', 'w', 'x', 'y', 'z')", None),
        ("host LIKE 'a%'", 8),
        ("host = rack", 0),
        ("host IN (SELECT host FROM cpu WHERE n = 1)", 12),
        ("host = 'a' AND random() >= 0", 8),
        ("time = (SELECT max(time) FROM cpu)", 3),
        ("date_part('day', time) = 2", 3),
        ("NOT (time < '1970-01-03')", None),
        ("false", 0),
        ("time > '1970-01-03' AND time < '1970-01-02'", 0),
        ("host = 'a' AND host = 'b'", 0),
        ("host = NULL", 0),
        ("true OR n > 1", None),
    ],
)
def test_everything_else_is_resolved_to_keys(world: World, condition: str, count: int | None) -> None:
    change, rows = changed(world, f"DELETE FROM cpu WHERE {condition}")
    if count is None:  # as the optimizer makes of it a range, or not: both are right
        return
    assert change.delete is None
    assert len(rows) == count
    assert all(list(row) == ["host", "rack", "time"] for row in rows)


def test_a_limit_is_no_range(world: World) -> None:
    change, rows = changed(world, "DELETE FROM cpu WHERE host = 'a' LIMIT 3")
    assert (change.delete, len(rows)) == (None, 3)
