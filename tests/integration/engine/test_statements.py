"""What may be asked and how: names, parameters, reading statements only, the schema as InfluxDB shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from engine.errors import (
    AmbiguousName,
    InvalidParameter,
    InvalidStatement,
    NotReadOnly,
    NotSupported,
    UnknownTable,
)
from engine.names import describes
from engine.scan import SystemTable
from storage.schema import TypeKind
from tests.harness.queries import World, make_table, sorted_rows

if TYPE_CHECKING:
    from pathlib import Path

    from engine.engine import Engine


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two tables with a row each."""
    cpu = make_table(fields={"usage": TypeKind.INT64, "Load": TypeKind.FLOAT64})
    mem = make_table("Mem.Info", tags=("Host", "host"), id=2)
    filled = World(tmp_path, cpu, mem)
    filled.add_file([{"time": 1, "host": "a", "usage": 1, "Load": 0.5}])
    filled.add_tail([{"time": 1, "host": "a", "Host": "b", "usage": 2}], mem)
    return filled


@pytest.mark.parametrize(
    ("statement", "row"),
    [
        ("SELECT USAGE FROM CPU", {"usage": 1}),
        ("SELECT usage, load FROM cpu", {"usage": 1, "Load": 0.5}),
        ("SELECT c.Usage FROM Cpu AS c WHERE C.hOST = 'a'", {"usage": 1}),
        ("SELECT x.LOAD AS Top FROM (SELECT load FROM cpu) x ORDER BY TOP", {"Top": 0.5}),
        ("SELECT iox.cpu.usage FROM public.iox.cpu", {"usage": 1}),
        ('SELECT "Host", host FROM "Mem.Info"', {"Host": "b", "host": "a"}),
        ("SELECT COUNT(*) AS N FROM cpu", {"N": 1}),
        ("WITH Foo AS (SELECT usage AS Bar FROM cpu) SELECT bar FROM FOO", {"Bar": 1}),
        ("VALUES (1)", {"column1": 1}),
        ("SELECT usage FROM cpu; ", {"usage": 1}),
    ],
)
def test_names_match_exactly_or_in_another_case(world: World, statement: str, row: dict[str, Any]) -> None:
    assert world.ask(statement) == [row]


def test_a_name_that_matches_several_is_an_error_with_the_candidates(world: World) -> None:
    with pytest.raises(AmbiguousName, match='"Host", "host"'):
        world.ask('SELECT HOST FROM "Mem.Info"')


def test_quoted_names_match_exactly_only(world: World) -> None:
    with pytest.raises(InvalidStatement, match="USAGE"):
        world.ask('SELECT "USAGE" FROM cpu')
    with pytest.raises(UnknownTable, match="table 'CPU' not found"):
        world.ask('SELECT * FROM "CPU"')


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE x AS SELECT 1",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE cpu",
        "COPY (SELECT 1) TO '/tmp/runnel-copy.csv' STORED AS CSV",
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '/tmp/runnel-copy.csv' STORED AS CSV",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "SELECT * INTO x FROM cpu",
        "SET datafusion.execution.batch_size = 1",
        "RESET datafusion.execution.batch_size",
        "PREPARE p AS SELECT 1",
        "EXECUTE p",
        "DEALLOCATE p",
        "CREATE FUNCTION f() RETURNS INT RETURN 1",
        "EXPLAIN CREATE TABLE x AS SELECT 1",
    ],
)
def test_only_reading_statements_are_served(world: World, statement: str) -> None:
    with pytest.raises(NotReadOnly, match="only reading statements"):
        world.ask(statement)


@pytest.mark.parametrize("statement", ["UPDATE cpu SET usage = 1", "DELETE FROM cpu", "TRUNCATE TABLE cpu"])
def test_changes_need_leave(world: World, statement: str) -> None:
    with pytest.raises(NotReadOnly, match="send it by POST"):
        world.ask(statement)


def test_an_insert_needs_leave_and_says_what_it_is_for(world: World) -> None:
    statement = "INSERT INTO cpu (usage) VALUES (7)"
    with pytest.raises(NotReadOnly, match="INSERT changes rows"):
        world.ask(statement)

    async def ask(engine: Engine) -> None:
        stream = await world.start(engine, statement, may_write=True)
        assert stream.change is not None
        assert stream.change.table == "cpu"
        assert [row["usage"] async for batch in stream for row in batch.to_pylist()] == [7]

    world.run(ask)


@pytest.mark.parametrize(
    "statement", ["BEGIN", "SELECT 1; SELECT 2", "SHOW DATABASES", "USE x", "MERGE INTO a USING b"]
)
def test_what_is_not_implemented_says_so(world: World, statement: str) -> None:
    with pytest.raises((NotSupported, InvalidStatement)):
        world.ask(statement)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("", "No SQL statements"),
        ("-- nothing", "No SQL statements"),
        ("SELEC 1", "ParserError"),
        ("SELECT * FRO cpu", "Line: 1, Column: 10"),
        ("SELECT nope FROM cpu", "No field named nope"),
        ("SELECT no_such_function(1)", "Invalid function 'no_such_function'"),
        ("SELECT * FROM cpu WHERE time > 'never'", "never"),
        ("SELECT $a", "'\\$a' was not provided"),
        ("SELECT '" + "x" * 2**20 + "'", "longer than 1048576 characters"),
        ("SELECT " + "(" * 500 + "1" + ")" * 500, "[Rr]ecursion"),
    ],
)
def test_bad_statements_say_what_and_where(world: World, statement: str, message: str) -> None:
    with pytest.raises(InvalidStatement, match=message):
        world.ask(statement)


def test_a_deep_expression_is_refused_before_it_ends_the_process(world: World) -> None:
    with pytest.raises(InvalidStatement, match="more than 2000 operators"):
        world.ask("SELECT " + "+".join(["usage"] * 20_000) + " FROM cpu")
    assert world.ask("SELECT " + "+".join(["usage"] * 300) + " AS s FROM cpu") == [{"s": 300}]
    many = ",".join(map(str, range(50_000)))
    assert world.ask(f"SELECT count(*) AS n FROM cpu WHERE usage IN ({many})") == [{"n": 1}]


@pytest.mark.parametrize("name", ["/etc/passwd", "file:///etc/passwd", "data/1-1.parquet", "s3://bucket/x.parquet"])
def test_files_are_not_tables(world: World, name: str) -> None:
    for statement in (f"SELECT * FROM '{name}'", f'SELECT * FROM "{name}"'):
        with pytest.raises(UnknownTable):
            world.ask(statement)


def test_layers_and_hidden_columns_cannot_be_reached(world: World) -> None:
    world.ask("SELECT * FROM cpu")
    for statement in ("SELECT * FROM _runnel_layers.l0", "SELECT * FROM public._runnel_layers.l0"):
        with pytest.raises(UnknownTable):
            world.ask(statement)
    with pytest.raises(InvalidStatement, match="_runnel_offset"):
        world.ask("SELECT _runnel_offset FROM cpu")


def test_parameters_are_bound_by_name_and_type(world: World) -> None:
    params = {"i": 1, "f": 0.5, "s": "a", "t": True, "n": None}
    statement = 'SELECT usage FROM cpu WHERE usage = $i AND "Load" = $f AND host = $s AND $t AND $n IS NULL'
    assert world.ask(statement, params=params) == [{"usage": 1}]
    assert world.ask("SELECT usage FROM cpu WHERE host = $s", params={"s": "' OR 1=1 --"}) == []
    assert world.ask("SELECT $i + 1 AS x", params={"i": 2**62}) == [{"x": 2**62 + 1}]


@pytest.mark.parametrize("value", [[1], {"a": 1}, b"x", 2**70])
def test_other_parameters_are_refused(world: World, value: object) -> None:
    with pytest.raises(InvalidParameter, match="parameter 'p'"):
        world.ask("SELECT $p", params={"p": value})


def test_schema_statements_show_influxdb_s_names_and_types(world: World) -> None:
    tables = world.ask("SHOW TABLES")
    mine = sorted_rows([t for t in tables if t["table_schema"] == "iox"])
    assert mine == [
        {"table_catalog": "public", "table_schema": "iox", "table_name": name, "table_type": "BASE TABLE"}
        for name in ("Mem.Info", "cpu")
    ]
    columns = world.ask("SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'cpu'")
    assert {c["column_name"]: c["data_type"] for c in columns} == {
        "Load": "Float64",
        "host": "Dictionary(Int32, Utf8)",
        "time": "Timestamp(ns)",
        "usage": "Int64",
    }
    assert [c["column_name"] for c in world.ask("SHOW COLUMNS FROM cpu")] == ["Load", "host", "time", "usage"]
    assert [c["column_name"] for c in world.ask("DESCRIBE CPU")] == ["Load", "host", "time", "usage"]
    assert world.asked == []


def test_schema_statements_can_be_joined_with_rows(world: World) -> None:
    statement = "SELECT t.table_name, c.usage FROM information_schema.tables t, cpu c WHERE t.table_name = 'cpu'"
    assert world.ask(statement) == [{"table_name": "cpu", "usage": 1}]


def test_a_table_beside_the_schema_is_never_read_as_empty(world: World) -> None:
    with pytest.raises(InvalidStatement, match="double quotes"):
        world.ask("SELECT c.usage FROM information_schema.tables t, 'cpu' c")


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT usage FROM cpu ORDER BY usage DESC", False),
        ("WITH show AS (SELECT 1) SELECT * FROM show", False),
        ("SHOW TABLES", True),
        ("/* c */ describe cpu", True),
        ("SELECT * FROM Information_Schema.tables", True),
        ("SELECT 'information_schema'", False),
    ],
)
def test_which_statements_are_about_the_schema(statement: str, expected: bool) -> None:
    assert describes(statement) is expected


def test_system_tables_are_built_when_they_are_mentioned(world: World) -> None:
    built: list[str] = []

    def build() -> pa.Table:
        built.append("files")
        return pa.table({"table_name": ["cpu"], "row_count": pa.array([1], pa.uint64())})

    ids = pa.schema([("id", pa.int8())])
    system = [
        SystemTable("parquet_files", pa.schema([("table_name", pa.string()), ("row_count", pa.uint64())]), build),
        SystemTable("queries", ids, ids.empty_table),
    ]
    world.ask("SELECT 1", system=system)
    assert built == []
    statement = "SELECT row_count FROM system.parquet_files WHERE table_name = 'cpu'"
    assert world.ask(statement, system=system) == [{"row_count": 1}]
    assert built == ["files"]
    assert world.ask("SELECT count(*) AS n FROM system.queries", system=system) == [{"n": 0}]
    shown = world.ask("SELECT table_name FROM information_schema.tables WHERE table_schema = 'system'", system=system)
    assert {t["table_name"] for t in shown} == {"parquet_files", "queries"}
    assert len(world.ask("DESCRIBE system.queries", system=system)) == 1
    assert built == ["files"]


def test_a_user_s_table_that_is_called_like_a_system_table_builds_none(tmp_path: Path) -> None:
    world = World(tmp_path, make_table("queries"))
    world.add_tail([{"time": 1, "host": "a", "usage": 7}])
    built: list[str] = []

    def build() -> pa.Table:
        built.append("queries")
        return pa.table({"id": ["x"]})

    system = [SystemTable("queries", pa.schema([("id", pa.string())]), build)]
    assert world.ask("SELECT usage FROM queries", system=system) == [{"usage": 7}]
    assert built == []
    assert world.ask("SELECT id FROM system.queries", system=system) == [{"id": "x"}]


def test_explain_and_explain_analyze(world: World) -> None:
    plan = world.ask("EXPLAIN SELECT * FROM cpu")
    assert [p["plan_type"] for p in plan] == ["logical_plan", "physical_plan"]
    analyzed = world.ask("EXPLAIN ANALYZE SELECT count(*), max(usage) FROM cpu WHERE usage > 0")
    assert "bytes_scanned" in analyzed[0]["plan"]


def test_databases_do_not_see_each_other(tmp_path: Path) -> None:
    one, two = World(tmp_path / "1", make_table("a")), World(tmp_path / "2", make_table("b", id=2))
    one.add_tail([{"time": 1, "usage": 1}])
    two.add_tail([{"time": 1, "usage": 2}])

    async def ask(engine: Engine) -> None:
        assert await one.rows(engine, "SELECT usage FROM a") == [{"usage": 1}]
        assert await two.rows(engine, "SELECT usage FROM b") == [{"usage": 2}]
        with pytest.raises(UnknownTable):
            await two.rows(engine, "SELECT usage FROM a")
        names = await one.rows(engine, "SELECT table_name FROM information_schema.tables WHERE table_schema = 'iox'")
        assert names == [{"table_name": "a"}]

    one.run(ask)


def test_time_series_functions(tmp_path: Path) -> None:
    world = World(tmp_path, make_table())
    minute = 60 * 10**9
    world.add_file([{"time": i * minute // 2, "host": "ab"[i % 2], "usage": i} for i in range(8)])
    statement = """
        SELECT date_bin(INTERVAL '1 minute', time) AS minute, max(usage) AS top,
               last_value(usage ORDER BY time) AS last
        FROM cpu WHERE time >= '1970-01-01T00:01:00' AND time < '1970-01-01T00:03:00Z' GROUP BY 1 ORDER BY minute DESC
    """
    assert world.ask(statement) == [
        {"minute": 2 * minute, "top": 5, "last": 5},
        {"minute": minute, "top": 3, "last": 3},
    ]
