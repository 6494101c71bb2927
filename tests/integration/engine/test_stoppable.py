"""Statements that join: the same rows as without the nodes that let them be stopped, and they are stopped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine import stoppable
from engine.errors import QueryMemoryExhausted, QueryTimeout
from engine.session import new_context
from tests.harness.queries import World, make_table, sorted_rows
from tests.integration.engine.test_limits import becomes_idle

if TYPE_CHECKING:
    from pathlib import Path

    from datafusion import SessionContext
    from datafusion.plan import ExecutionPlan

    from engine.engine import Engine

CPU = make_table()
MEM = make_table("mem", ("host",), id=2)
JOINS = [
    "SELECT a.host, a.usage, b.usage AS other FROM cpu a JOIN mem b ON a.host = b.host AND a.time = b.time",
    (
        "SELECT a.host, b.usage FROM cpu a LEFT JOIN mem b ON a.host = b.host AND a.time = b.time + INTERVAL"
        " '1 nanosecond' WHERE a.usage > 5"
    ),
    "SELECT coalesce(a.host, b.host) AS h, a.usage AS x, b.usage AS y FROM cpu a FULL JOIN mem b USING (time)",
    "SELECT count(*) AS n, sum(a.usage * b.usage) AS s FROM cpu a CROSS JOIN mem b",
    "SELECT count(*) AS n FROM cpu a, mem b WHERE a.usage < b.usage",
    "SELECT a.host, count(*) AS n FROM cpu a JOIN mem b ON a.usage <> b.usage GROUP BY a.host ORDER BY n LIMIT 3",
    "SELECT * FROM (SELECT host, max(usage) AS m FROM cpu GROUP BY host) x NATURAL JOIN (SELECT host FROM mem) y",
    "SELECT a.usage FROM cpu a JOIN mem b USING (host, time) UNION ALL SELECT usage FROM mem WHERE usage < 3",
    (
        "SELECT host, row_number() OVER (PARTITION BY host ORDER BY u) AS r FROM"
        " (SELECT a.host, a.usage AS u FROM cpu a JOIN mem b USING (host, time)) j"
    ),
    "SELECT v.value, a.usage FROM generate_series(1, 5) v JOIN cpu a ON a.usage = v.value",
    "SELECT usage FROM cpu WHERE host IN (SELECT a.host FROM mem a JOIN cpu b USING (time) WHERE a.usage > 90)",
    "SELECT a.usage, l.m FROM cpu a, LATERAL (SELECT max(usage) AS m FROM mem b WHERE b.host = a.host) l",
    "WITH j AS (SELECT a.usage FROM cpu a JOIN mem b USING (host, time)) SELECT count(DISTINCT usage) AS n FROM j",
]
ENDLESS = [
    "SELECT sum(a.usage * b.usage) FROM cpu a CROSS JOIN cpu b CROSS JOIN cpu c CROSS JOIN cpu d CROSS JOIN cpu e",
    (
        "SELECT count(*) FROM cpu a JOIN cpu b ON a.usage <> b.usage JOIN cpu c ON c.usage <> b.usage"
        " JOIN cpu d ON d.usage <> a.usage JOIN cpu e ON e.usage <> d.usage"
    ),
    (
        "SELECT sum(a.value) FROM generate_series(1, 50000) a"
        " JOIN generate_series(1, 50000) b ON a.value % 2 = b.value % 2"
        " JOIN generate_series(1, 50000) c ON c.value % 2 = b.value % 2"
    ),
]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Two tables with files, merged layers and tails."""
    filled = World(tmp_path, CPU, MEM)
    for table, factor in ((CPU, 1), (MEM, 2)):
        rows: list[dict[str, Any]] = [{"time": t, "host": f"h{t % 10}", "usage": t * factor} for t in range(300)]
        filled.add_file(rows, table)
        filled.add_file([row | {"usage": row["usage"] + 1} for row in rows[::7]], table)
        filled.add_tail([row | {"usage": row["usage"] + 2} for row in rows[::11]], table)
    return filled


@pytest.mark.parametrize("partitions", [1, 2])
@pytest.mark.parametrize("statement", JOINS)
def test_joins_give_the_same_rows(
    world: World, statement: str, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"target_partitions": partitions}
    is_ordered = "ORDER BY n LIMIT" in statement
    changed = world.ask(statement, limits)
    monkeypatch.setattr(stoppable, "execute", lambda _, frame, __: frame.execute_stream())
    plain = world.ask(statement, limits)
    assert len(plain) > 0
    if is_ordered:
        assert [row["n"] for row in changed] == [row["n"] for row in plain]
    else:
        assert sorted_rows(changed) == sorted_rows(plain)


@pytest.mark.parametrize("statement", ENDLESS)
def test_an_endless_join_stops(world: World, statement: str) -> None:
    async def ask(engine: Engine) -> None:
        for _ in range(4):
            with pytest.raises((QueryTimeout, QueryMemoryExhausted)):
                await world.rows(engine, statement, timeout_seconds=0.3)
        assert await becomes_idle()
        assert await world.rows(engine, "SELECT count(*) AS n FROM cpu") == [{"n": 300}]

    world.run(ask)


def test_a_join_whose_reader_leaves_stops(world: World) -> None:
    async def ask(engine: Engine) -> None:
        reader = asyncio.ensure_future(world.rows(engine, ENDLESS[0]))
        await asyncio.sleep(0.3)
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)
        assert await becomes_idle()

    world.run(ask)


def kinds(plan: ExecutionPlan, above: str = "") -> list[tuple[str, str]]:
    """Every join of a plan and what stands above it."""
    name = plan.display().split(":")[0].strip()
    found = [(above, name)] if "Join" in name else []
    return found + [pair for child in plan.children() for pair in kinds(child, name)]


@pytest.fixture(scope="module")
def context() -> SessionContext:
    made = new_context(2**26, None, 2, 8192, 0)
    for name in ("a", "b"):
        made.register_table(
            name, made.sql("SELECT value AS k, value * 2 AS v FROM generate_series(1, 100)").into_view()
        )
    return made


@pytest.mark.parametrize(
    ("statement", "joins"),
    [
        ("SELECT sum(a.v) FROM a JOIN b ON a.k = b.k", 1),
        ("SELECT count(*) FROM a CROSS JOIN b", 1),
        ("SELECT a.v FROM a JOIN b ON a.k < b.v JOIN a c ON c.k = b.k ORDER BY 1 LIMIT 5", 2),
        (
            "SELECT k, count(*) FROM (SELECT a.k FROM a LEFT JOIN b ON a.k = b.v UNION ALL SELECT k FROM b) GROUP BY k",
            1,
        ),
        ("SELECT sum(x) OVER (ORDER BY y) FROM (SELECT a.v AS x, b.v AS y FROM a, b WHERE a.k + b.k > 3)", 1),
    ],
)
def test_every_join_can_be_stopped(context: SessionContext, statement: str, joins: int) -> None:
    frame = context.sql(statement)
    assert stoppable.joins(frame)
    plan = vars(stoppable)["_rewritten"](context, frame, True, False)
    assert [above for above, _ in kinds(plan)] == ["CooperativeExec"] * joins
    assert plan.partition_count == 1


@pytest.mark.parametrize("statement", ["SELECT k FROM a", "SELECT k, v AS join FROM a WHERE k > 3 GROUP BY k, v"])
def test_other_statements_are_left_alone(context: SessionContext, statement: str) -> None:
    assert not stoppable.joins(context.sql(statement))


def test_merges_of_a_table_s_layers_are_no_joins(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are in every plan, make no more rows than they read, and their tails must not be copied."""
    monkeypatch.setattr(stoppable, "_rewritten", lambda *_: pytest.fail("a merge was taken for a join"))
    (row,) = world.ask("SELECT count(*) AS n, sum(usage) AS s FROM cpu WHERE host <> 'h3'")
    assert row["n"] == 270
    for kind in ("LeftAnti Join", "Full Join"):
        explained = "\n".join(row["plan"] for row in world.ask("EXPLAIN SELECT count(*) AS n FROM cpu"))
        assert kind in explained, "nothing was merged: this test shows nothing"
        world.add_tail([{"time": 1, "host": "h1"}])  # not whole, so that rows are joined
        assert world.ask("SELECT count(*) AS n FROM cpu WHERE host <> 'h3'")


def test_a_plan_that_cannot_be_changed_runs_as_it_is(context: SessionContext, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = context.sql("SELECT count(*) AS n FROM a JOIN b ON a.k = b.k")
    monkeypatch.setattr(stoppable, "wrap_joins", lambda _: b"\xff\xff\xff")
    assert vars(stoppable)["_rewritten"](context, frame, True, False) is None
    for tails_bytes in (0, stoppable.TAILS_BYTES_MAX + 1):
        (batch,) = stoppable.execute(context, frame, tails_bytes)
        assert batch.to_pyarrow().column(0).to_pylist() == [100]
