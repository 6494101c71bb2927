"""A statement sees one snapshot, folded: files and tails, alone and overlapping, in any number."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import engine.planner
import engine.starting
import engine.views
import storage.datafile
import storage.keys
from engine.views import FILES_MANY
from storage.deletes import RangeDelete, TagValues
from storage.schema import OP_COLUMN, Column, Op, Role, TypeKind
from tests.harness.queries import Row, World, make_table, sorted_rows

if TYPE_CHECKING:
    from pathlib import Path

    from engine.engine import Engine

ALL_KINDS = {
    "i": TypeKind.INT64,
    "u": TypeKind.UINT64,
    "f": TypeKind.FLOAT64,
    "s": TypeKind.STRING,
    "b": TypeKind.BOOL,
}


def points(times: range, value: int, host: str | None = "a") -> list[Row]:
    return [{"time": t, "usage": value} | ({"host": host} if host else {}) for t in times]


def check(world: World, statement: str = "SELECT * FROM cpu") -> None:
    assert sorted_rows(world.ask(statement)) == sorted_rows(world.expected())


def test_an_empty_table_has_columns_and_no_rows(tmp_path: Path) -> None:
    world = World(tmp_path)

    async def ask(engine: Engine) -> Any:
        stream = await world.start(engine, "SELECT * FROM cpu")
        return stream.schema.names, [batch async for batch in stream if batch.num_rows]

    assert world.run(ask) == (["host", "time", "usage"], [])


def test_columns_are_in_the_order_of_their_names(tmp_path: Path) -> None:
    world = World(tmp_path, make_table(tags=("zone", "Area"), fields={"b": TypeKind.INT64, "a": TypeKind.INT64}))
    world.add_tail([{"time": 1, "a": 1}])

    async def ask(engine: Engine) -> Any:
        return (await world.start(engine, "SELECT * FROM cpu")).schema.names

    assert world.run(ask) == ["Area", "a", "b", "time", "zone"]


def test_files_and_tail_apart(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add_file(points(range(10), 1))
    world.add_file(points(range(10, 20), 2))
    world.add_tail(points(range(20, 30), 3))
    check(world)


def test_files_and_tail_overlap_and_the_newest_value_of_each_field_wins(tmp_path: Path) -> None:
    world = World(tmp_path, make_table(fields={"a": TypeKind.INT64, "b": TypeKind.INT64}))
    world.add_file([{"time": 1, "host": "x", "a": 1, "b": 1}, {"time": 2, "host": "x", "a": 1}])
    world.add_file([{"time": 2, "host": "x", "b": 2}, {"time": 3, "host": "x", "a": 2}])
    world.add_tail([{"time": 1, "host": "x", "a": 3}, {"time": 1, "host": "y", "a": 3}])
    assert sorted_rows(world.ask("SELECT * FROM cpu")) == sorted_rows([
        {"time": 1, "host": "x", "a": 3, "b": 1},
        {"time": 2, "host": "x", "a": 1, "b": 2},
        {"time": 3, "host": "x", "a": 2},
        {"time": 1, "host": "y", "a": 3},
    ])  # fmt: skip


def test_null_tags_are_one_key(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add_file([{"time": 1, "usage": 1}])
    world.add_tail([{"time": 1, "usage": 2}, {"time": 1, "usage": 3, "host": ""}])
    assert sorted_rows(world.ask("SELECT * FROM cpu")) == sorted_rows([
        {"time": 1, "usage": 2},
        {"time": 1, "usage": 3, "host": ""},
    ])  # fmt: skip


def test_a_condition_on_a_field_sees_merged_rows_only(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add_file(points(range(3), 10))
    world.add_tail(points(range(2), 95))
    assert world.ask("SELECT count(*) AS n FROM cpu WHERE usage = 10") == [{"n": 1}]
    assert world.ask(
        "SELECT count(*) AS n FROM cpu WHERE usage = 10 AND host = 'a' AND time < to_timestamp_nanos(2)"
    ) == [{"n": 0}]


@pytest.mark.parametrize("is_whole", [True, False])
def test_conditions_go_into_each_layer_of_a_merge(tmp_path: Path, is_whole: bool) -> None:
    """Those on keys; those on a field only where its rows are as they stand, not where they hide others (L26)."""
    fields = {"usage": TypeKind.INT64} | ({} if is_whole else {"idle": TypeKind.INT64})
    world = World(tmp_path, make_table(fields=fields))
    world.add_file(points(range(100), 1))
    world.add_file(points(range(50, 150), 2))
    condition = "host = 'a' AND time < to_timestamp_nanos(60) AND host IN ('a', 'b', 'c', 'd') AND length(host) = 1"
    plan = world.ask(f"EXPLAIN SELECT * FROM cpu AS c WHERE {condition} AND usage > 1")[1]["plan"]
    merged = [line for line in plan[plan.index("HashJoinExec") :].splitlines() if "DataSourceExec" in line]
    for line in merged:
        pushed = line.split("predicate=")[1]
        assert "time@0 >= 50 AND time@0 <= 59" in pushed
        assert "character_length(c1@1) = 1" in pushed
        assert ("c100@" in pushed) == (is_whole and "c100" in line.split("predicate=")[0])
    assert len(merged) == (3 if is_whole else 2), "of what is replaced, the keys of the newer layer, and its rows"


@pytest.mark.parametrize(("is_whole", "joins_max"), [(True, 6), (False, 6), (True, 1)])
def test_a_constant_before_the_sign_is_no_contradiction(
    tmp_path: Path, is_whole: bool, joins_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DataFusion 55 finds one between `'a' = host`, as it is written, and `host = 'a'`, as the layers have it."""
    monkeypatch.setattr(engine.views, "JOINS_MAX", joins_max)
    fields = {"usage": TypeKind.INT64} | ({} if is_whole else {"idle": TypeKind.INT64})
    world = World(tmp_path, make_table(fields=fields))
    world.add_file(points(range(9), 1))
    world.add_file(points(range(5, 15), 2))
    for condition in (
        "'a' = host",
        "'1970-01-01T00:00:00.000000007Z' = time",
        "'a' = host AND 'a' = host AND usage = 2",
    ):
        times = "time > to_timestamp_nanos(6) AND time < to_timestamp_nanos(8)"
        (found,) = world.ask(f"SELECT count(*) AS n FROM cpu WHERE {condition} AND {times}")
        assert found == {"n": 1}, condition


def test_files_outside_of_the_asked_time_are_not_planned(tmp_path: Path) -> None:
    world = World(tmp_path)
    for n in range(FILES_MANY + 2):
        world.add_file(points(range(10 * n, 10 * n + 11), n))
    plan = world.ask("EXPLAIN SELECT * FROM cpu WHERE time > to_timestamp_nanos(42) AND time <= to_timestamp_nanos(48)")
    assert plan[1]["plan"].count(".parquet") == 1
    assert "HashJoinExec" not in plan[1]["plan"]
    assert world.ask("SELECT count(*) AS n FROM cpu WHERE time = to_timestamp_nanos(40)") == [{"n": 1}]
    assert world.ask("SELECT count(*) AS n FROM cpu WHERE time < to_timestamp_nanos(-1)") == [{"n": 0}]
    assert world.ask("SELECT count(*) AS n FROM cpu") == [{"n": len(world.expected())}]


def test_conditions_that_come_after_where_leave_no_file_out(tmp_path: Path) -> None:
    """Windows and pipes see rows that these conditions do not let through."""
    world = World(tmp_path)
    world.add_file(points(range(5), 1))
    world.add_file(points(range(5, 10), 2))
    late = "time >= '1970-01-01T00:00:00.000000005Z'"
    number = "row_number() OVER (ORDER BY time)"
    numbered = f"SELECT time, {number} AS n FROM cpu WHERE usage > 0 QUALIFY {number} <= 7 AND {late}"
    assert sorted_rows(world.ask(numbered)) == [{"time": 5, "n": 6}, {"time": 6, "n": 7}]
    assert len(world.ask(f"SELECT * FROM cpu WHERE usage > 0 |> EXTEND usage = 1 AND {late}")) == 10


@pytest.mark.parametrize("other", ["host = 'c'", "host = 'c') AND (time >= to_timestamp_nanos(0)"])
def test_a_condition_by_chance_brings_no_older_row_back(tmp_path: Path, other: str) -> None:
    """DataFusion 55 had it decide once for the rows, and once more for the keys that hide them."""
    world = World(tmp_path)
    world.add_file(points(range(200), 10))
    world.add_file(points(range(200), 95))
    (found,) = world.ask(
        f"SELECT max(usage) AS a, min(usage) AS b FROM cpu WHERE (host = 'a' AND random() < 0.5 OR {other})"
    )
    assert found == {"a": 95, "b": 95}


@pytest.mark.parametrize(
    "condition",
    [
        "'b' = host AND coalesce(host, 'q') = 'b'",
        "lower('B') = host AND coalesce(host, 'q') = 'b'",
        "'b' IN (host) AND coalesce(host, 'q') = 'b'",
        "'b' = host AND CASE WHEN host IS NOT NULL THEN host END = 'b'",
        "CASE WHEN true THEN 'b' END = host AND coalesce(host, 'q') = 'b'",
        "host = 'b' AND coalesce(host, 'q') = 'b'",
    ],
)
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_constant_before_the_sign_and_a_computed_column_are_no_contradiction(
    tmp_path: Path, condition: str, is_whole: bool
) -> None:
    fields = {"usage": TypeKind.INT64} | ({} if is_whole else {"idle": TypeKind.INT64})
    world = World(tmp_path, make_table(fields=fields))
    world.add_file([row for host in "abc" for row in points(range(4), 1, host)])
    world.add_file([row for host in "ab" for row in points(range(1, 3), 2, host)])
    assert world.ask(f"SELECT count(*) AS n, sum(usage) AS s FROM cpu WHERE {condition}") == [{"n": 4, "s": 6}]


@pytest.mark.parametrize("is_whole", [True, False])
@pytest.mark.parametrize("form", ["files", "tail", "tail alone", "ops"])
def test_a_column_that_must_have_one_value_may_be_sorted_by(tmp_path: Path, is_whole: bool, form: str) -> None:
    """DataFusion 55 leaves it out of the sort, and where it is computed later it refused its own plan."""
    fields = {"usage": TypeKind.INT64} | ({} if is_whole else {"idle": TypeKind.INT64})
    world = World(tmp_path, make_table(tags=("host", "rack"), fields=fields))
    if form != "tail alone":
        world.add_file(points(range(9), 1))
        world.add_file(points(range(5, 15), 2))
    if form != "files":
        op: Row = {OP_COLUMN: Op.PUT.code} if form == "ops" else {}
        world.add_tail([row | op | {"rack": "r"} for row in points(range(20), 4)] + points(range(3), 4))
    conditions = "host = 'a' AND usage = 4 AND (rack IS NULL OR rack > 'a')"
    wanted = [r for r in world.expected() if r["usage"] == 4]
    twice = "cpu AS c JOIN cpu AS d ON c.time = d.time AND c.rack IS NOT DISTINCT FROM d.rack"
    for statement in (
        f"SELECT host, time FROM cpu WHERE {conditions} ORDER BY time, host, rack",
        f"SELECT host, time, usage FROM cpu WHERE {conditions} ORDER BY usage, time",
        f"SELECT host, time, lag(time) OVER (PARTITION BY host ORDER BY usage, time) FROM cpu WHERE {conditions}",
        f"SELECT c.host, c.time FROM {twice} WHERE c.host = 'a' AND c.usage = 4 ORDER BY c.host, c.usage, c.time",
    ):
        assert len(world.ask(statement)) == len(wanted), statement
    grouped = f"SELECT host, usage, count(*) AS n FROM cpu WHERE {conditions} GROUP BY host, usage ORDER BY usage, host"
    assert world.ask(grouped) == ([{"host": "a", "usage": 4, "n": len(wanted)}] if wanted else [])


def test_a_table_that_stands_in_a_statement_twice_is_right_too(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add_file(points(range(20), 1))
    world.add_tail(points(range(10, 30), 2))
    statement = """
        SELECT count(*) AS n FROM cpu AS a JOIN cpu AS b ON a.usage = b.usage
        WHERE a.time < to_timestamp_nanos(15) AND b.time >= to_timestamp_nanos(12)
    """
    assert world.ask(statement) == [{"n": 5 * 18}]


def test_rows_below_the_cutoff_are_hidden(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add_file(points(range(10), 1))
    world.add_file(points(range(5, 30), 2))
    world.add_tail(points(range(8, 40), 3))
    for cutoff in (0, 7, 8, 12, 30, 35, 100):
        world.cutoff_ns = cutoff
        check(world)


def test_l36_each_partition_has_a_cutoff_of_its_own(tmp_path: Path) -> None:
    """Files that stand alone, layers that are merged, tails; also when it alone has changed."""
    world = World(tmp_path)
    for partition in (0, 1):
        world.add_file(points(range(10), 1), partition=partition)
        world.add_file(points(range(20, 30), 2), partition=partition)
        world.add_file(points(range(25, 40), 3), partition=partition)
        world.add_tail(points(range(35, 50), 4), partition=partition)

    async def ask(engine: Engine) -> None:
        for age, own in ((None, {1: 5}), (None, {0: 27, 1: 5}), (None, {0: 38}), (28, {0: 5, 1: 45}), (None, {})):
            world.cutoff_ns, world.cutoffs_ns = age, own
            found = await world.rows(engine, "SELECT * FROM cpu")
            assert sorted_rows(found) == sorted_rows(world.expected()), (age, own)

    world.run(ask)


def test_partitions_are_merged_each_for_itself(tmp_path: Path) -> None:
    """A key is unique in its partition; a client may write the same one to two (FORMAT F21)."""
    world = World(tmp_path)
    world.add_file(points(range(3), 1), partition=0)
    world.add_file(points(range(3), 2), partition=1)
    world.add_tail(points(range(2), 3), partition=1)
    check(world)
    assert world.ask("SELECT count(*) AS n FROM cpu") == [{"n": 6}]


def test_columns_that_files_lack_are_null_and_renamed_columns_keep_their_values(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add_file(points(range(2), 1))
    old = world.table
    renamed = dataclasses.replace(next(c for c in old.columns if c.name == "usage"), name="load")
    added = Column(300, "extra", "c300", Role.FIELD, TypeKind.FLOAT64)
    rack = Column(301, "rack", "c301", Role.TAG, TypeKind.STRING)
    columns = (*(c for c in old.columns if c.name != "usage"), rack, renamed, added)
    world.tables = (dataclasses.replace(old, version=2, columns=columns),)
    world.add_tail([{"time": 1, "host": "a", "load": 5}, {"time": 2, "host": "a", "rack": "r", "extra": 0.5}])
    assert sorted_rows(world.ask("SELECT * FROM cpu")) == sorted_rows([
        {"time": 0, "host": "a", "load": 1},
        {"time": 1, "host": "a", "load": 5},
        {"time": 2, "host": "a", "rack": "r", "extra": 0.5},
    ])  # fmt: skip


def test_all_types_come_back_from_files_and_tails(tmp_path: Path) -> None:
    world = World(tmp_path, make_table(fields=ALL_KINDS))
    rows = [
        {"time": -(2**63), "host": "é", "i": -(2**63), "u": 2**64 - 1, "f": -0.5, "s": "a'\"\n", "b": True},
        {"time": 2**63 - 1, "host": "", "i": 2**63 - 1, "u": 0, "f": 1e300, "s": "", "b": False},
    ]
    world.add_file(rows)
    check(world)
    world.add_tail(rows)
    check(world)


def test_more_layers_than_are_joined_are_grouped(tmp_path: Path) -> None:
    world = World(tmp_path, make_table(fields={"a": TypeKind.INT64, "s": TypeKind.STRING}))
    for layer in range(engine.views.JOINS_MAX + 3):
        field: Row = {"a": layer} if layer % 2 else {"s": str(layer)}
        world.add_file([{"time": t} | field | ({"host": "h"} if t % 3 else {}) for t in range(layer, 12)])
    check(world)
    narrow = "SELECT * FROM cpu WHERE time >= to_timestamp_nanos(5) AND time < to_timestamp_nanos(9) AND host = 'h'"
    wanted = [r for r in world.expected() if 5 <= r["time"] < 9 and r.get("host") == "h"]
    assert sorted_rows(world.ask(narrow)) == sorted_rows(wanted)


def test_thousands_of_tiny_batches(tmp_path: Path) -> None:
    world = World(tmp_path)
    for t in range(3000):
        world.add_tail([{"time": t % 1000, "host": f"h{t % 7}", "usage": t}])
    check(world)


def test_a_growing_tail_is_read_whole_each_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add_file(points(range(5), 0))

    async def grow(engine: Engine) -> None:
        for n in range(1, 30):
            world.add_tail(points(range(n, n + 5), n))
            if n % 10 == 0:
                world.checkpoint()
            rows = await world.rows(engine, "SELECT * FROM cpu")
            assert sorted_rows(rows) == sorted_rows(world.expected())

    world.run(grow)


def test_tables_that_a_statement_does_not_mention_are_not_asked_for(tmp_path: Path) -> None:
    world = World(tmp_path, make_table("cpu"), make_table("mem", id=2))
    world.add_tail(points(range(2), 1))
    world.ask("SELECT * FROM CPU")
    world.ask("SELECT 1")
    assert world.asked == [["cpu"]]


def test_names_of_tables_and_folders_may_hold_anything(tmp_path: Path) -> None:
    world = World(
        tmp_path / "a b#c%20?'é", make_table("T.x \"y' z", tags=("a.b", 'q"'), fields={"A b": TypeKind.INT64})
    )
    world.add_file([{"time": 1, "a.b": "x", 'q"': "y", "A b": 1}])
    world.add_tail([{"time": 1, "a.b": "x", 'q"': "y", "A b": 2}])
    statement = 'SELECT "A b", "a.b", "q""" FROM "T.x ""y\' z" WHERE "a.b" = \'x\' AND "q""" = \'y\''
    assert world.ask(statement) == [{"A b": 2, "a.b": "x", 'q"': "y"}]


VALUES = {"host": st.sampled_from(["a", "b"]), "rack": st.sampled_from(["x", ""]), "n": st.integers(0, 5)}
ROW = st.fixed_dictionaries({"time": st.integers(0, 12)}, optional=VALUES | {"s": st.sampled_from(["", "v", "w"])})
STEPS = st.lists(
    st.tuples(
        st.lists(ROW, min_size=1, max_size=6),
        st.booleans(),
        st.integers(0, 1),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)
"""Rows, whether a checkpoint follows, their partition, and whether each sets every field."""
CONDITIONS: list[tuple[str, Any]] = [
    ("time >= to_timestamp_nanos(4) AND time < to_timestamp_nanos(9)", lambda r: 4 <= r["time"] < 9),
    ("time >= '1970-01-01T00:00:00.000000004Z' AND time < '1970-01-01 00:00:00.000000009' AND n < 4 ORDER BY n",
     lambda r: 4 <= r["time"] < 9 and r.get("n", 9) < 4),
    ("time > '1970-01-01T00:00:00.000000012Z' AND time < '1970-01-01'", lambda _: False),
    ("host = 'a'", lambda r: r.get("host") == "a"),
    ("host IS NULL", lambda r: "host" not in r),
    ("host = 'a' OR n > 2", lambda r: r.get("host") == "a" or r.get("n", 0) > 2),
    ("n < 3 AND rack = ''", lambda r: r.get("n", 9) < 3 and r.get("rack") == ""),
    ("host IN ('a', 'c') AND s = 'v'", lambda r: r.get("host") == "a" and r.get("s") == "v"),
    ("n IS NULL AND host IS NOT NULL", lambda r: "n" not in r and "host" in r),
    ("NOT (host = 'a') AND n BETWEEN 1 AND 3", lambda r: r.get("host", "a") != "a" and 1 <= r.get("n", 0) <= 3),
    ("CASE host WHEN 'a' THEN n ELSE 1 END = 1", lambda r: r.get("n") == 1 if r.get("host") == "a" else True),
    ("host || s = 'av' AND s LIKE 'v%'", lambda r: r.get("host") == "a" and r.get("s") == "v"),
    ("n IN (1, 2, 3, 4, 5) AND host NOT IN ('b')", lambda r: r.get("n", 0) > 0 and r.get("host", "b") != "b"),
    ("'a' = host AND rack IS NULL", lambda r: r.get("host") == "a" and "rack" not in r),
    ("'1970-01-01T00:00:00.000000007Z' = time AND 'b' >= host", lambda r: r["time"] == 7 and r.get("host", "c") <= "b"),
    ("coalesce(host, rack) = 'b'", lambda r: r.get("host", r.get("rack")) == "b"),
    ("time = (SELECT max(time) FROM cpu) AND host = 'a'", None),
]  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    STEPS,
    st.sampled_from(CONDITIONS),
    st.none() | st.integers(0, 12),
    st.dictionaries(st.integers(0, 1), st.integers(0, 12)),
    st.sampled_from([1, 6]),
    st.sampled_from(["no keys", "keys", "one hash"]),
    st.sampled_from([Op.PATCH, Op.PUT]),
    st.booleans(),
)
def test_any_history_reads_as_its_fold(
    tmp_path: Path,
    steps: list[Any],
    condition: tuple[str, Any],
    cutoff: int | None,
    cutoffs: dict[int, int],
    joins_max: int,
    keys: str,
    default_op: Op,
    is_heavy: bool,
) -> None:
    """Of tables of patches and of puts; without keys in the files, with them, and where all have one hash (F22).

    As it is, and as if tails were so large that they are read without the columns that do not matter.
    """
    fields = {"n": TypeKind.INT64, "s": TypeKind.STRING}
    table = make_table(tags=("host", "rack"), fields=fields)
    world = World(tmp_path, dataclasses.replace(table, default_op=default_op))
    world.cutoff_ns, world.cutoffs_ns = cutoff, cutoffs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.views, "JOINS_MAX", joins_max)
        patch.setattr(storage.datafile, "SERIES_ROWS_MIN", 10**9 if keys == "no keys" else 1)
        if keys == "one hash":
            patch.setattr(storage.keys, "key_hash", lambda _: 7)
        if is_heavy:
            patch.setattr(engine.planner, "HEAVY_TAILS_BYTES", -1)
            patch.setattr(engine.planner, "HEAVY_FILES_BYTES", -1)
        for rows, flush, partition, is_whole in steps:
            world.add_tail([{"n": 0, "s": ""} | row for row in rows] if is_whole else rows, partition=partition)
            if flush:
                world.checkpoint(partition=partition)
        check_history(world, *condition)


@pytest.mark.parametrize("is_heavy", [False, True])
@pytest.mark.parametrize("in_file", [False, True], ids=["alone", "merged"])
def test_large_tails_are_read_without_the_columns_that_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_file: bool, is_heavy: bool
) -> None:
    wide = {f"f{number}": TypeKind.INT64 for number in range(50)}
    world = World(tmp_path, make_table(fields=wide))
    rows: list[Row] = [{"time": t, "host": "a", **dict.fromkeys(wide, t)} for t in range(100)]
    if in_file:
        world.add_file([rows[7]])
    world.add_tail(rows)
    seen: list[int] = []
    started = engine.starting.started

    def spied(context: Any, frame: Any, tails_bytes: int, *more: Any) -> Any:
        seen.append(tails_bytes)
        return started(context, frame, tails_bytes, *more)

    monkeypatch.setattr("engine.planner.started", spied)
    if is_heavy:
        monkeypatch.setattr(engine.planner, "HEAVY_TAILS_BYTES", -1)
        monkeypatch.setattr(engine.planner, "HEAVY_FILES_BYTES", -1)
    assert world.ask("SELECT sum(f7) AS s, count(*) AS n FROM cpu") == [{"s": sum(range(100)), "n": 100}]
    assert len(world.ask("SELECT * FROM cpu")[50]) == 52
    some, everything = seen
    assert (some * 5 < everything) == is_heavy, seen


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT count(*) AS n FROM cpu", [{"n": 3}]),  # a delete in memory hides nothing but counts as no row
        ("SELECT max(s) AS s, count(n) AS n FROM cpu WHERE host = 'b'", [{"s": "v", "n": 1}]),
        ("SELECT a.n, b.host FROM cpu AS a JOIN cpu AS b ON a.s = b.s WHERE a.host = 'a'",
         [{"n": 1, "host": "a"}, {"n": 1, "host": "b"}]),
        ("SELECT a.n, b.n AS m FROM cpu AS a JOIN cpu AS b ON a.s = b.s WHERE b.host = 'a'",
         [{"n": 1, "m": 1}, {"n": 2, "m": 1}]),
        ("SELECT n, (SELECT max(s) FROM cpu) AS s FROM cpu WHERE n > 1", [{"n": 2, "s": "w"}, {"n": 3, "s": "w"}]),
        ("SELECT n FROM cpu WHERE EXISTS (SELECT 1 FROM cpu AS o WHERE o.s = cpu.s AND o.n > cpu.n)", [{"n": 1}]),
        ("SELECT n FROM cpu WHERE CASE WHEN s = 'w' THEN true END", [{"n": 3}]),
        ("SELECT o.n FROM (SELECT n, s, host FROM cpu) AS o ORDER BY o.s DESC, o.n DESC LIMIT 1", [{"n": 3}]),
        ("SELECT sum(n) AS n FROM cpu NATURAL JOIN mem", [{"n": 2}]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("in_file", [False, True], ids=["alone", "merged"])
def test_large_tails_give_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_file: bool, statement: str, expected: list[Row]
) -> None:
    fields = {"n": TypeKind.INT64, "s": TypeKind.STRING}
    world = World(tmp_path, make_table(fields=fields), make_table("mem", fields={"n": TypeKind.INT64}, id=2))
    rows = [{"host": "a", "n": 1, "s": "v"}, {"host": "b", "n": 2, "s": "v"}, {"host": "c", "n": 3, "s": "w"}]
    if in_file:
        world.add_file([{"time": at, "host": "d", "n": 9, "s": "z"} for at in range(2)])
    gone = [{"time": at, "host": "d", OP_COLUMN: Op.DELETE.code} for at in range(2)]
    world.add_tail([{"time": 1, **row, OP_COLUMN: Op.PATCH.code} for row in rows] + gone)
    world.add_tail([{"time": 1, "host": "b", "n": 2}], world.tables[1])
    monkeypatch.setattr(engine.planner, "HEAVY_TAILS_BYTES", -1)
    monkeypatch.setattr(engine.planner, "HEAVY_FILES_BYTES", -1)
    assert sorted_rows(world.ask(statement)) == sorted_rows(expected)


def check_history(world: World, text: str, holds: Any) -> None:
    """What is read, all of it and where a condition holds, is the fold of what was written."""
    expected = world.expected()
    if holds is None:
        newest = max((r["time"] for r in expected), default=None)
        wanted = [r for r in expected if r["time"] == newest and r.get("host") == "a"]
    else:
        wanted = [r for r in expected if holds(r)]

    pairs = "SELECT count(*) AS n FROM cpu AS a JOIN cpu AS b ON a.s = b.s"

    async def ask(engine: Engine) -> Any:
        texts = ("SELECT * FROM cpu", f"SELECT * FROM cpu WHERE {text}", f"SELECT n FROM cpu WHERE {text}", pairs)
        return [await world.rows(engine, one) for one in texts]

    whole, some, column, joined = world.run(ask)
    assert sorted_rows(whole) == sorted_rows(expected)
    assert sorted_rows(some) == sorted_rows(wanted)
    assert sorted_rows(column) == sorted_rows([{"n": r["n"]} if "n" in r else {} for r in wanted])
    assert joined == [{"n": sum(count**2 for count in Counter(r["s"] for r in expected if "s" in r).values())}]


@pytest.mark.parametrize("again", [{"n": 9, "s": "w"}, {"n": 9}], ids=["whole", "a field"])
def test_f22_a_hash_never_stands_for_a_key(
    tmp_path: Path, again: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All series have one hash: only rows of one key are one row, however the layers are merged."""
    monkeypatch.setattr(storage.datafile, "SERIES_ROWS_MIN", 1)
    monkeypatch.setattr(storage.keys, "key_hash", lambda _: 7)
    table = make_table(tags=("host", "rack"), fields={"n": TypeKind.INT64, "s": TypeKind.STRING})
    world = World(tmp_path, table)
    hosts = ("a", "b", None)
    first = world.add_file([{"time": t, "host": h, "n": t, "s": "v"} for h in hosts for t in range(3)])
    second = world.add_file([{"time": t, "host": "b", **again} for t in range(3)])
    assert (first.has_keys, second.has_keys) == (True, True)
    found = world.ask("SELECT * FROM cpu")
    assert sorted_rows(found) == sorted_rows(world.expected())
    assert len(found) == 9


STEP: list[Row] = [
    {}, {"n": 1}, {"s": "v"}, {"n": 2, OP_COLUMN: Op.PUT.code}, {"s": "w", OP_COLUMN: Op.PUT.code},
    {OP_COLUMN: Op.DELETE.code},
]  # fmt: skip
"""What one layer does to a key; nothing, first."""


@pytest.mark.parametrize(("joins_max", "default_op"), [(1, Op.PATCH), (6, Op.PATCH), (1, Op.PUT), (6, Op.PUT)])
@pytest.mark.parametrize("in_tail", [0, 1, 2, 4])
@pytest.mark.parametrize("tags", [("host",), ("host", "rack")], ids=["no keys", "keys"])
def test_f11_every_history_of_four_layers_reads_as_its_fold(
    tmp_path: Path, joins_max: int, default_op: Op, in_tail: int, tags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every history is that of a key of its own. A layer without ops is one of patches only, as most are."""
    monkeypatch.setattr(storage.datafile, "SERIES_ROWS_MIN", 1)
    table = make_table(tags=tags, fields={"n": TypeKind.INT64, "s": TypeKind.STRING})
    world = World(tmp_path, dataclasses.replace(table, default_op=default_op))
    histories = list(itertools.product(STEP, repeat=4))
    for layer in range(4):
        rows = [
            {"time": 1} | ({"host": f"h{number}"} if number else {}) | history[layer]
            for number, history in enumerate(histories)
            if history[layer]
        ]
        world.add_tail(rows)
        if layer < 4 - in_tail:
            world.checkpoint()
    world.add_file([{"time": 1, "host": "other", "n": 1}])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.views, "JOINS_MAX", joins_max)
        for where, holds in (("", lambda _: True), (" WHERE n = 1", lambda r: r.get("n") == 1), *OF_A_HOST):
            wanted = [row for row in world.expected() if holds(row)]
            assert sorted_rows(world.ask(f"SELECT * FROM cpu{where}")) == sorted_rows(wanted)


OF_A_HOST: list[tuple[str, Any]] = [
    (f" WHERE host = 'h{number}'", lambda r, host=f"h{number}": r.get("host") == host) for number in (1, 299, 1231)
]


def test_f11_deletes_alone_are_no_rows(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add_file([{"time": 1, "host": "a", OP_COLUMN: Op.DELETE.code}, {"time": 2, "host": "a", "usage": 1}])
    world.add_tail([{"time": 9, "host": "a", OP_COLUMN: Op.DELETE.code}, {"time": 9, "host": "b", "usage": 2}])
    check(world)
    assert world.ask("SELECT count(*) AS n, count(usage) AS m, max(time) AS t FROM cpu") == [{"n": 2, "m": 2, "t": 9}]


def test_l26_range_deletes_take_what_was_written_before_them(tmp_path: Path) -> None:
    """Of files and tails, alone and merged; rows that are written after them stay."""
    world = World(tmp_path, make_table(tags=("host", "rack"), fields={"n": TypeKind.INT64, "s": TypeKind.STRING}))
    host, rack = world.table.tags[0].id, world.table.tags[1].id
    deletes = [
        RangeDelete(2, 4),
        RangeDelete(tags=(TagValues(host, ("a", "it's")),)),
        RangeDelete(0, 6, (TagValues(host, (None, "b")), TagValues(rack, (None,)))),
        RangeDelete(tags=(TagValues(rack, ("x",)),)),
        RangeDelete(7, 7, (TagValues(host, (None,)),)),
    ]
    tags: list[Row] = [{}, {"host": "a"}, {"host": "b"}, {"host": "it's", "rack": "x"}, {"host": "b", "rack": "x"}]
    chooser = random.Random(3)
    for step in range(40):
        kind = chooser.choice(["rows", "rows", "delete", "checkpoint"])
        if kind == "delete":
            world.add_delete(chooser.choice(deletes))
        elif kind == "checkpoint" and world.part().tail:
            world.checkpoint()
        else:
            field: Row = {"n": step} if step % 2 else {"s": str(step)}
            world.add_tail([{"time": chooser.randrange(9)} | chooser.choice(tags) | field for _ in range(6)])
        check(world)
        narrow = "SELECT * FROM cpu WHERE time >= to_timestamp_nanos(3) AND host = 'b'"
        wanted = [row for row in world.expected() if row["time"] >= 3 and row.get("host") == "b"]
        assert sorted_rows(world.ask(narrow)) == sorted_rows(wanted)
    assert len(world.expected()) > 5


def test_l26_a_growing_tail_with_deletes_is_right_each_time(tmp_path: Path) -> None:
    world = World(tmp_path)
    host = world.table.tags[0].id

    async def grow(engine: Engine) -> None:
        for n in range(1, 40):
            world.add_tail(points(range(n, n + 5), n) + points(range(n, n + 3), n, "b"))
            if n % 3 == 0:
                world.add_delete(RangeDelete(n - 1, n + 1, (TagValues(host, ("a",)),) if n % 2 else ()))
            if n % 10 == 0:
                world.checkpoint()
            rows = await world.rows(engine, "SELECT * FROM cpu")
            assert sorted_rows(rows) == sorted_rows(world.expected())

    world.run(grow)


def test_l26_files_that_a_delete_takes_whole_are_not_read(tmp_path: Path) -> None:
    world = World(tmp_path)
    gone = world.add_file(points(range(10), 1))
    kept = world.add_file(points(range(10, 20), 2))
    world.add_delete(RangeDelete(-5, 9))
    for _ in range(2):
        plan = world.ask("EXPLAIN SELECT * FROM cpu")[1]["plan"]
        assert gone.path not in plan
        assert kept.path in plan
        world.add_tail(points(range(30, 31), 3))
        world.checkpoint()
        check(world)


@pytest.mark.parametrize("seed", range(3))
def test_l26_very_many_range_deletes(tmp_path: Path, seed: int) -> None:
    """They are joined against as tables: as conditions they took longer to plan than a query may run."""
    chooser = random.Random(seed)
    world = World(tmp_path, make_table(tags=("host", "rack"), fields={"n": TypeKind.INT64}))
    hosts = [None, "", "it's", *(f"h{n}" for n in range(40))]

    def rows() -> list[Row]:
        keys = {(chooser.choice(hosts), chooser.choice((None, "r")), chooser.randrange(100)) for _ in range(300)}
        return [
            {k: v for k, v in zip(("host", "rack", "time", "n"), (*key, 1), strict=True) if v is not None}
            for key in keys
        ]

    for _ in range(3):
        world.add_file(rows())
    for n in range((30, 800, 100)[seed]):
        low = chooser.randrange(90)
        tags = (TagValues(1, tuple(chooser.sample(hosts, 2))), TagValues(2, (chooser.choice((None, "r")),)))
        world.add_delete(RangeDelete(low, low + 3, tags[: chooser.randrange(1, 3)]))
        if n % 10 == 0:
            world.add_tail(rows()[:20])
    for n in range(4 if seed == 2 else 1):
        values = (None, *(f"h{at + 30}" for at in range(n * 9_000, (n + 1) * 9_000)))
        world.add_delete(RangeDelete(n, n, (TagValues(1, values),)))
    for _ in range(2):
        assert sorted_rows(world.ask("SELECT * FROM cpu")) == sorted_rows(world.expected())
        (found,) = world.ask("SELECT count(*) AS n FROM cpu WHERE host = 'h3' AND time > to_timestamp_nanos(50)")
        assert found["n"] == len([r for r in world.expected() if r.get("host") == "h3" and r["time"] > 50])
        world.checkpoint()
