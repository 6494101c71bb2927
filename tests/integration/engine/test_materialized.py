"""A materialized view says what its SELECT says of the rows that there are, however it was folded and they changed."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any

import pytest

from engine.changes import ChangeKind, NewView, RowChange, ViewProgress
from engine.errors import InvalidStatement, NotReadOnly, NotSupported, UnknownTable
from nodes.views import STATE_TIME_NS
from storage.catalogplan import STATE_FIELD
from storage.deletes import RangeDelete, TagValues
from storage.errors import SnapshotTooOld
from storage.schema import OP_COLUMN, Column, Op, Role, Table, TypeKind, ViewDefinition
from tests.harness.queries import World, make_table, sorted_rows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

    from engine.engine import Engine
    from storage.schema import TableSnapshot

HOUR = 3_600 * 10**9
ORIGIN = 7
SELECT = (
    f"SELECT date_bin(INTERVAL '1 hour', time, arrow_cast({ORIGIN}, 'Timestamp(ns)')) AS time, host, rack AS place, "
    "sum(n) AS total, count(*) AS rows, min(text) AS first FROM cpu WHERE n <> 13 GROUP BY 1, host, rack"
)
CPU = make_table(tags=("host", "rack"), fields={"n": TypeKind.INT64, "text": TypeKind.STRING})
COLUMNS = {"total": TypeKind.INT64, "rows": TypeKind.INT64, "first": TypeKind.STRING}
VIEW = dataclasses.replace(
    make_table("hourly", ("host", "place"), COLUMNS, id=2), view=ViewDefinition(1, 3, SELECT, HOUR, ORIGIN)
)
STATE = Table(
    3, "u", 1, "_runnel_view_2", 1,
    (
        Column(1, "time", "time", Role.TIME, TypeKind.TIMESTAMP),
        Column(2, STATE_FIELD, STATE_FIELD, Role.FIELD, TypeKind.STRING),
    ),
    (),
)  # fmt: skip
HOST = 1


class Viewed(World):
    """A table, a view of it, and the keeper that writes what a refresh says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, CPU, VIEW, STATE)
        self.meanwhile: Callable[[], Awaitable[object]] | None = None
        """What happens once, after the first snapshot of a statement and before its second."""

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        found = await super().snapshot(tables)
        work, self.meanwhile = self.meanwhile, None
        if work is not None:
            await work()
        return found

    async def refresh(self, engine: Engine, limit: int | None = None) -> tuple[int, bool]:
        """One step, of all buckets or ``limit``; how many rows it wrote, and whether there is more."""
        text = f"REFRESH MATERIALIZED VIEW hourly LIMIT {limit or 2**62}"
        stream = await self.start(engine, text, may_write=True)
        rows = [row async for batch in stream for row in batch.to_pylist()]
        assert stream.change is not None
        assert stream.change.kind is ChangeKind.REFRESH_VIEW
        progress = stream.change.view
        assert isinstance(progress, ViewProgress)
        if rows:
            self.add_tail([{**row, "time": row["time"].value} for row in rows], VIEW)
        if progress.state:
            row = {"time": STATE_TIME_NS, STATE_FIELD: progress.state, OP_COLUMN: Op.PUT.code}
            self.add_tail([row], STATE)
        return len(rows), progress.has_more

    async def both(self, engine: Engine, condition: str = "") -> tuple[list[Any], list[Any]]:
        """What the view says, and what its SELECT says."""
        rows = await self.rows(engine, f"SELECT * FROM hourly {condition}")
        wanted = await self.rows(engine, f"SELECT * FROM ({SELECT}) AS computed {condition}")
        return sorted_rows(rows), sorted_rows(wanted)


@pytest.fixture
def world(tmp_path: Path) -> Viewed:
    return Viewed(tmp_path)


def row(hour: float, host: str | None = "a", n: int | None = 1, **fields: Any) -> dict[str, Any]:
    return {"time": int(hour * HOUR) + ORIGIN, "host": host, "n": n, **fields}


def asked(world: World, statement: str) -> RowChange:
    async def work(engine: Engine) -> RowChange | None:
        stream = await world.start(engine, statement, may_write=True)
        assert [batch.num_rows async for batch in stream if batch.num_rows] == []
        return stream.change

    change: RowChange = world.run(work)
    return change


def test_a_definition_says_its_columns_and_its_bucket(world: Viewed) -> None:
    change = asked(world, f"create materialized view IF NOT EXISTS hourly AS {SELECT};")
    assert (change.kind, change.table) == (ChangeKind.CREATE_VIEW, "hourly")
    view = change.view
    assert isinstance(view, NewView)
    assert (view.table_id, view.width_ns, view.origin_ns, view.exist_ok) == (1, HOUR, ORIGIN, True)
    found = [(column.name, column.role, column.kind) for column in view.columns]
    assert found == [
        ("host", Role.TAG, TypeKind.STRING),
        ("place", Role.TAG, TypeKind.STRING),
        ("total", Role.FIELD, TypeKind.INT64),
        ("rows", Role.FIELD, TypeKind.INT64),
        ("first", Role.FIELD, TypeKind.STRING),
    ]


def test_names_are_found_without_regard_to_case_and_kept_as_they_are(world: Viewed) -> None:
    change = asked(
        world, "CREATE MATERIALIZED VIEW v AS SELECT date_bin('2 days', TIME) AS time, max(N) AS m FROM CPU GROUP BY 1"
    )
    assert isinstance(change.view, NewView)
    assert (change.view.width_ns, change.view.origin_ns) == (48 * HOUR, 0)
    assert change.view.text == 'SELECT date_bin(\'2 days\', "time") AS time, max("n") AS m FROM "cpu" GROUP BY 1'


def test_names_that_are_right_stay_as_they_are_written(world: Viewed) -> None:
    """Also one that a column has in another case: it is the view's column that is called so."""
    text = "SELECT date_bin('1 hour', time) AS time, max(n) AS N, min(text) AS Rack FROM cpu GROUP BY 1"
    change = asked(world, f"CREATE MATERIALIZED VIEW v AS {text}")
    assert isinstance(change.view, NewView)
    assert change.view.text == text
    assert [column.name for column in change.view.columns] == ["N", "Rack"]


@pytest.mark.parametrize(
    ("query", "error", "said"),
    [
        ("SELECT host, count(*) AS n FROM cpu GROUP BY host", NotSupported, "date_bin"),
        ("SELECT date_bin('1 hour', time) AS time, n, count(*) AS c FROM cpu GROUP BY 1, n", NotSupported, "no tag"),
        ("SELECT date_bin('1 hour', time) AS hour, count(*) AS c FROM cpu GROUP BY 1", InvalidStatement, "AS time"),
        ("SELECT date_bin('1 hour', time) AS time, count(*) AS c FROM cpu GROUP BY 1, host", InvalidStatement, "host"),
        ("SELECT date_bin('1 month', time) AS time, count(*) AS c FROM cpu GROUP BY 1", NotSupported, "fixed width"),
        ("SELECT date_bin('1 hour', time) AS time FROM cpu GROUP BY 1", InvalidStatement, "aggregate"),
        ("SELECT date_bin('1 hour', time) AS time, max(time) AS c FROM cpu GROUP BY 1", NotSupported, "cast 'c'"),
        ("SELECT date_bin('1 hour', time) AS time, count(*) AS c FROM cpu GROUP BY 1 HAVING count(*) > 1",
         NotSupported, "HAVING"),
        ("SELECT date_bin('1 hour', time) AS time, count(*) AS c FROM cpu GROUP BY 1 LIMIT 2", NotSupported, "LIMIT"),
        ("SELECT date_bin('1 hour', time) AS time, count(*) AS c FROM cpu WHERE time < now() GROUP BY 1",
         NotSupported, "now"),
        ("SELECT date_bin('1 hour', time) AS time, count(*) AS c FROM cpu WHERE n > $n GROUP BY 1",
         NotSupported, r"\$n"),
        ("SELECT date_bin('1 hour', a.time) AS time, count(*) AS c FROM cpu a, cpu b GROUP BY 1", NotSupported, "once"),
        ("SELECT date_bin('1 hour', time) AS time, count(*) AS c FROM cpu WHERE n IN (SELECT n FROM cpu) GROUP BY 1",
         NotSupported, "once"),
        ("SELECT date_bin('1 hour', time) AS time, count(*) AS c FROM hourly GROUP BY 1", NotSupported, "itself"),
        ("SELECT date_bin('1 hour', time) AS time, count(*) AS c FROM nowhere GROUP BY 1", UnknownTable, "nowhere"),
        ("SELECT date_bin('0 hours', time) AS time, count(*) AS c FROM cpu GROUP BY 1", NotSupported, "above 0"),
        ("SELECT date_bin('1 hour', time) AS time, count(*) AS c FROM cpu WHERE time < \"now\"() GROUP BY 1",
         NotSupported, "now"),
        ("SELECT date_bin('1 hour', time) AS time, count(*) AS c FROM cpu WHERE n > ? GROUP BY 1", NotSupported, r"\?"),
        ("SELECT date_bin('1 hour', time) AS time, host AS h, count(*) AS c FROM cpu GROUP BY 1, h",
         NotSupported, "what it stands for"),
        ("SELECT date_bin('30000 days', time) AS time, count(*) AS c FROM cpu GROUP BY 1", NotSupported, "73 years"),
        ("SELECT date_bin('1 hour', time, '2200-01-01') AS time, count(*) AS c FROM cpu GROUP BY 1",
         NotSupported, "origin from 1823"),
        ("SELECT date_bin('1 hour', time, NULL) AS time, count(*) AS c FROM cpu GROUP BY 1",
         NotSupported, "origin from 1823"),
        ("SELECT date_bin('1 hour', time + INTERVAL '1 hour') AS time, count(*) AS c FROM cpu GROUP BY 1",
         NotSupported, "itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_kept_is_refused(world: Viewed, query: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        asked(world, f"CREATE MATERIALIZED VIEW v AS {query}")


@pytest.mark.parametrize("statement", ["INSERT INTO hourly (host, total) VALUES ('a', 1)", "DELETE FROM hourly",
                                       "UPDATE hourly SET total = 1"])  # fmt: skip
def test_nobody_writes_into_a_view(world: Viewed, statement: str) -> None:
    with pytest.raises(NotSupported, match="materialized view"):
        asked(world, statement)


def test_a_request_that_may_not_write_refreshes_nothing(world: Viewed) -> None:
    with pytest.raises(NotReadOnly, match="POST"):
        world.ask("REFRESH MATERIALIZED VIEW hourly")


def test_a_refresh_of_what_is_no_view(world: Viewed) -> None:
    with pytest.raises(UnknownTable, match="no materialized view 'cpu'"):
        world.ask("REFRESH MATERIALIZED VIEW cpu", may_write=True)


def test_rows_are_seen_at_once_folded_or_not(world: Viewed) -> None:
    async def work(engine: Engine) -> None:
        assert await world.both(engine) == ([], [])
        world.add_tail([row(1), row(1.5, n=2), row(2.5, "b"), row(-0.5, None, rack="x")])
        found, wanted = await world.both(engine)
        assert found == wanted
        assert len(found) == 3
        assert await world.refresh(engine) == (3, False)
        assert await world.both(engine) == (wanted, wanted)
        assert await world.refresh(engine) == (0, False)
        world.add_tail([row(1.25, n=5)])
        found, wanted = await world.both(engine)
        assert found == wanted
        assert [one["rows"] for one in found if one["total"] == 8] == [3]
        assert await world.refresh(engine) == (1, False)

    world.run(work)


def test_one_refreshes_while_another_reads(world: Viewed) -> None:
    """The state is read first: what it says is folded must be in the stored rows that are read with it."""

    async def work(engine: Engine) -> None:
        world.add_tail([row(1), row(2)])
        await world.refresh(engine)
        world.add_tail([row(1.5, n=5)])
        _, wanted = await world.both(engine)
        world.meanwhile = lambda: world.refresh(engine)
        assert sorted_rows(await world.rows(engine, "SELECT * FROM hourly")) == wanted
        assert await world.refresh(engine) == (0, False), "it was refreshed"

    world.run(work)


def test_a_refresh_reads_only_the_buckets_that_changed(world: Viewed) -> None:
    """Damage what is folded: it is not looked at again, and the bucket that changed is computed from its rows."""

    async def work(engine: Engine) -> None:
        world.add_file([row(hour) for hour in range(20)])
        assert await world.refresh(engine) == (20, False)
        world.add_tail([{"time": 3 * HOUR + ORIGIN, "host": "a", "total": 999, "rows": 1, OP_COLUMN: 1}], VIEW)
        world.add_tail([row(10.5)])
        assert await world.refresh(engine) == (1, False)
        assert [r["total"] for r in await world.rows(engine, "SELECT * FROM hourly WHERE total > 2")] == [999]

    world.run(work)


def test_l16_a_file_that_is_gone_before_it_was_looked_into_is_no_empty_one(world: Viewed) -> None:
    async def work(engine: Engine) -> None:
        world.add_file([row(hour) for hour in range(3)])
        await world.refresh(engine)
        file = world.add_file([row(1.5)])
        (world.folder / file.path).unlink()
        with pytest.raises(SnapshotTooOld):
            await world.rows(engine, "SELECT * FROM hourly")

    world.run(work)


def test_a_refresh_in_steps_goes_from_the_oldest_bucket_on(world: Viewed) -> None:
    async def work(engine: Engine) -> None:
        world.add_file([row(hour) for hour in range(10)])
        _, wanted = await world.both(engine)
        counts = []
        while True:
            count, has_more = await world.refresh(engine, limit=4)
            counts.append(count)
            assert await world.both(engine) == (wanted, wanted)
            if not has_more:
                break
        assert counts == [4, 4, 2]

    world.run(work)


def test_a_delete_that_left_no_trace_makes_everything_new(world: Viewed) -> None:
    async def work(engine: Engine) -> None:
        world.add_file([row(hour) for hour in range(6)])
        assert (await world.refresh(engine))[0] == 6
        world.add_delete(RangeDelete(HOUR, 3 * HOUR, (TagValues(HOST, ("a",)),)))
        found, wanted = await world.both(engine)
        assert found == wanted
        assert len(found) == 4
        world.checkpoint()
        assert await world.both(engine) == (wanted, wanted)
        world.compact()
        assert await world.both(engine) == (wanted, wanted)
        assert await world.refresh(engine) == (2, False)
        assert await world.refresh(engine) == (0, False)
        assert await world.both(engine) == (wanted, wanted)

    world.run(work)


def test_rows_go_from_a_view_of_which_the_table_has_nothing_left_there(world: Viewed) -> None:
    async def work(engine: Engine) -> None:
        world.add_file([row(1), row(20)])
        assert (await world.refresh(engine))[0] == 2
        for low, left in ((19 * HOUR, 1), (0, 0)):
            world.add_delete(RangeDelete(low, 30 * HOUR))
            world.checkpoint()
            world.compact()
            found, wanted = await world.both(engine)
            assert found == wanted
            assert len(found) == left
            assert await world.refresh(engine) == (1, False)
            assert await world.both(engine) == (wanted, wanted)

    world.run(work)


def test_buckets_that_retention_touches_stay_as_they_were_folded(world: Viewed) -> None:
    async def work(engine: Engine) -> None:
        world.add_file([row(hour) for hour in range(6)])
        await world.refresh(engine)
        _, whole = await world.both(engine)
        world.hidden[CPU.id] = int(2.5 * HOUR)
        assert (await world.both(engine))[0] == whole
        world.add_tail([row(5.5), row(2.75), row(2.8)])
        await world.refresh(engine)
        found, _ = await world.both(engine)
        assert [r["rows"] for r in sorted(found, key=lambda r: r["time"])] == [1, 1, 1, 1, 1, 2]

    world.run(work)


def test_what_retention_hid_is_computed_when_the_period_is_made_longer(world: Viewed) -> None:
    """Hidden buckets were never folded, or changed since: nothing hides them any more (LOG L36)."""

    async def work(engine: Engine) -> None:
        world.add_file([row(hour) for hour in range(6)])
        world.hidden[CPU.id] = int(3.5 * HOUR)
        while (await world.refresh(engine))[1]:
            pass
        assert await world.refresh(engine) == (0, False), "what is hidden is not folded again and again"
        world.add_tail([row(0.5), row(5.5)])
        world.hidden[CPU.id] = int(4.5 * HOUR)
        await world.refresh(engine)
        state = world.part(STATE).offset
        world.hidden[CPU.id] = int(4.75 * HOUR)
        assert await world.refresh(engine) == (0, False)
        assert world.part(STATE).offset == state, "a cut-off that moves on writes no state"
        world.hidden.clear()
        found, wanted = await world.both(engine)
        assert found == wanted
        assert len(found) == 6
        assert (await world.refresh(engine))[0] == 4
        assert await world.both(engine) == (wanted, wanted)
        assert await world.refresh(engine) == (0, False)

    world.run(work)


@pytest.mark.parametrize("times", [(-(2**63), 0), (2**63 - 1, 0), (-(2**63), 2**63 - 1), (-(2**62), 2**62)])
def test_rows_at_the_ends_of_all_times_are_seen(world: Viewed, times: tuple[int, int]) -> None:
    """There `date_bin` says NULL, which is no key: such rows are never folded, and do no harm to others."""

    async def work(engine: Engine) -> None:
        world.add_tail([{"time": at, "host": "a", "n": 1} for at in times])
        for rows in ([], [row(1), {"time": times[0], "host": "b", "n": 5}]):
            if rows:
                world.add_tail(rows)
            found, wanted = await world.both(engine)
            assert found == wanted
            assert len(found) == len(times) + len(rows)
            while (await world.refresh(engine))[1]:
                pass
            assert await world.both(engine) == (wanted, wanted)
            world.checkpoint()
        assert await world.both(engine, "WHERE time >= '1970-01-01T00:00:00Z'") == await world.both(
            engine, "WHERE time >= '1970-01-01T00:00:00Z' AND 1 = 1"
        )

    world.run(work)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_it_says_what_its_select_says(world: Viewed, seed: int) -> None:
    chance = random.Random(seed)

    async def work(engine: Engine) -> None:
        for _ in range(50):
            step(world, chance)
            if chance.random() < 0.2:
                await world.refresh(engine, chance.choice([None, None, 1, 3]))
            if chance.random() < 0.4:
                low = chance.randrange(-3, 30)
                at = f"1970-01-{1 + max(low, 0) // 24:02}T{max(low, 0) % 24:02}:{chance.randrange(60):02}:00Z"
                condition = chance.choice(
                    ["", "WHERE host = 'a'", f"WHERE time >= arrow_cast({low * HOUR}, 'Timestamp(ns)')",
                     f"WHERE time {chance.choice(['>=', '<', '<='])} '{at}'"]
                )  # fmt: skip
                found, wanted = await world.both(engine, condition)
                assert found == wanted
        while (await world.refresh(engine))[1]:
            pass
        found, wanted = await world.both(engine)
        assert found == wanted

    world.run(work)


def step(world: World, chance: random.Random) -> None:
    """Something that may happen to the table, or to the view's own rows."""
    partition = chance.randrange(2)
    what = chance.random()
    if what < 0.6:
        rows = [
            row(chance.randrange(-2 * 8, 30 * 8) / 8, chance.choice(["a", "b", None]), chance.choice([1, 13, None, 7]),
                rack=chance.choice(["x", None]), text=chance.choice(["p", "q"]))
            for _ in range(chance.randrange(1, 6))
        ]  # fmt: skip
        for one in rows:
            if chance.random() < 0.1:
                one |= {OP_COLUMN: Op.DELETE.code, "n": None, "text": None}
        world.add_tail([one for one in rows if host_partition(one) == partition] or [row(0, "b" if partition else "a")],
                       partition=partition)  # fmt: skip
    elif what < 0.7:
        low = chance.randrange(-2, 30) * HOUR
        world.add_delete(RangeDelete(low, low + chance.randrange(1, 4) * HOUR), partition=partition)
    elif what < 0.85:
        world.checkpoint(partition=partition)
    elif what < 0.92:
        world.compact(partition=partition)
    else:
        world.checkpoint(chance.choice([VIEW, STATE]))


def host_partition(one: dict[str, Any]) -> int:
    return 1 if one["host"] == "b" else 0
