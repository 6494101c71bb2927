"""A query is killed wherever it is: its reader is told so, its place is free, and others go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from engine.engine import Engine, EngineLimits
from engine.errors import EngineError, NoSuchQuery, QueryKilled, TooManyQueries
from engine.running import Origin, Phase
from tests.harness.queries import POOL_BYTES, World
from tests.harness.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from engine.running import QueryView
    from engine.stream import QueryStream
    from storage.schema import Table, TableSnapshot

ENDLESS = "SELECT sum(value) FROM generate_series(1, 1000000000000) WHERE value % 7 = 3"
ROWS = "SELECT value FROM generate_series(1, 1000000000000)"
ORIGIN = Origin("http", "127.0.0.1:5", "r1")


class SilentSource(World):
    """A source that answers when the test says so."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.gate = asyncio.Event()

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        await self.gate.wait()
        return await super().snapshot(tables)


@pytest.fixture
def world(tmp_path: Path) -> World:
    filled = World(tmp_path)
    filled.add_file([{"time": t, "host": f"h{t % 10}", "usage": t} for t in range(1000)])
    return filled


def only(engine: Engine) -> QueryView:
    (view,) = engine.running.views()
    return view


async def in_phase(engine: Engine, phase: Phase) -> QueryView:
    """The one query that is in this phase, when it is."""
    await until(lambda: phase in [view.phase for view in engine.running.views()])
    (found,) = [view for view in engine.running.views() if view.phase is phase]
    return found


async def is_usable(world: World, engine: Engine) -> None:
    """Nothing is left of the killed one: with one place, another query runs."""
    assert list(engine.running.views()) == []
    assert await world.rows(engine, "SELECT 1 AS x") == [{"x": 1}]


def test_one_that_waits(world: World) -> None:
    async def ask(engine: Engine) -> None:
        first = await world.start(engine, ROWS)
        waiting = asyncio.create_task(world.start(engine, "SELECT 2 AS x"))
        killed = await in_phase(engine, Phase.WAITING)
        engine.running.kill(killed.id)
        with pytest.raises(QueryKilled, match=killed.id):
            await waiting
        assert only(engine).phase is Phase.SENDING
        await first.aclose()
        await is_usable(world, engine)

    world.run(ask, queries_max=1)


def test_one_that_is_being_planned(tmp_path: Path) -> None:
    async def main() -> None:
        world = SilentSource(tmp_path)
        engine = world.engine(queries_max=1)
        try:
            planned = asyncio.create_task(world.start(engine, "SELECT * FROM cpu"))
            killed = await in_phase(engine, Phase.PLANNING)
            engine.running.kill(killed.id)
            with pytest.raises(QueryKilled, match=killed.id):
                await planned
            await is_usable(world, engine)
        finally:
            await engine.close()

    asyncio.run(main())


def test_one_that_runs_before_its_first_batch(world: World) -> None:
    async def ask(engine: Engine) -> None:
        running = asyncio.create_task(world.start(engine, ENDLESS))
        killed = await in_phase(engine, Phase.RUNNING)
        engine.running.kill(killed.id)
        with pytest.raises(QueryKilled, match=killed.id):
            await running
        await is_usable(world, engine)

    world.run(ask, queries_max=1)


def test_one_whose_reader_has_a_batch(world: World) -> None:
    async def ask(engine: Engine) -> None:
        stream = await world.start(engine, ROWS, origin=ORIGIN)
        batch = await anext(stream)
        view = only(engine)
        assert (view.phase, view.rows) == (Phase.SENDING, batch.num_rows)
        assert batch.nbytes <= view.bytes <= batch.nbytes + 1024
        assert (view.database, view.text, view.origin) == ("db", ROWS, ORIGIN)
        engine.running.kill(view.id)
        for _ in range(2):
            with pytest.raises(QueryKilled, match=view.id):
                await anext(stream)
        await is_usable(world, engine)

    world.run(ask, queries_max=1)


def test_one_whose_reader_waits_for_the_next_batch(world: World) -> None:
    async def ask(engine: Engine) -> None:
        stream = await world.start(engine, "SELECT 1 AS x UNION ALL (" + ROWS + " WHERE value < 0)")
        await anext(stream)
        reader = asyncio.ensure_future(anext(stream))
        killed = await in_phase(engine, Phase.RUNNING)
        engine.running.kill(killed.id)
        with pytest.raises(QueryKilled):
            await reader
        await is_usable(world, engine)

    world.run(ask, queries_max=1)


def test_one_that_is_killed_in_the_moment_in_which_it_begins(world: World) -> None:
    """The kill is on its way while the first batch arrives: at every step either nothing or the error comes."""

    async def ask(engine: Engine) -> None:
        ends: list[str] = []
        for steps in range(40):
            starting = asyncio.create_task(world.start(engine, "SELECT 1 AS x"))
            for _ in range(steps):
                await asyncio.sleep(0)
            for view in engine.running.views():
                engine.running.kill(view.id)
            try:
                stream = await starting
                ends.append("whole" if [batch async for batch in stream] else "empty")
            except QueryKilled:
                ends.append("killed")
            await is_usable(world, engine)
        assert set(ends) <= {"whole", "killed"}
        assert "killed" in ends

    world.run(ask, queries_max=1)


def test_one_that_is_killed_when_its_first_batch_is_there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(engine: Engine) -> None:
        real = engine._attempts

        async def attempts(statement: Any) -> QueryStream:
            stream = await real(statement)
            engine.running.kill(statement.query.id)
            return stream

        monkeypatch.setattr(engine, "_attempts", attempts)
        with pytest.raises(QueryKilled):
            await world.start(engine, "SELECT 1 AS x")
        monkeypatch.undo()
        await is_usable(world, engine)

    world.run(ask, queries_max=1)


def test_what_has_ended_cannot_be_killed(world: World) -> None:
    async def ask(engine: Engine) -> None:
        stream = await world.start(engine, "SELECT 1 AS x")
        killed = only(engine)
        assert [batch.num_rows async for batch in stream] == [1]
        with pytest.raises(NoSuchQuery, match=killed.id):
            engine.running.kill(killed.id)

    world.run(ask)


def test_every_way_to_end_takes_it_off_the_list_and_is_told(world: World) -> None:
    ends: list[tuple[str, int, int]] = []
    failing: list[tuple[str, float | None]] = [
        ("SELEKT", None), ("SELECT 1 / (usage - 7) FROM cpu", None), (ENDLESS, 0.1)
    ]  # fmt: skip

    async def main() -> None:
        limits = EngineLimits(POOL_BYTES, query_seconds=30.0)
        engine = Engine(str(world.folder), limits, on_end=lambda v, outcome: ends.append((outcome, v.rows, v.files)))
        await world.rows(engine, "SELECT * FROM cpu")
        await world.rows(engine, "SELECT * FROM cpu WHERE usage < 0")
        await (await world.start(engine, ROWS)).aclose()
        for statement, seconds in failing:
            with pytest.raises(EngineError):
                await world.rows(engine, statement, timeout_seconds=seconds)
        gone = asyncio.create_task(world.start(engine, ENDLESS))
        await in_phase(engine, Phase.RUNNING)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert list(engine.running.views()) == []
        await engine.close()

    asyncio.run(main())
    assert [outcome for outcome, _, _ in ends] == [
        "done", "done", "query_cancelled", "invalid_statement", "statement_failed", "query_timeout", "query_cancelled",
    ]  # fmt: skip
    assert ends[0] == ("done", 1000, 1)
    assert ends[1] == ("done", 0, 1)


def test_a_query_waits_for_its_turn_no_longer_than_it_may(world: World) -> None:
    async def ask(engine: Engine) -> None:
        first = await world.start(engine, ROWS)
        with pytest.raises(TooManyQueries, match="no place among the 1 running queries"):
            await world.start(engine, "SELECT 1 AS x")
        await first.aclose()
        await is_usable(world, engine)

    world.run(ask, queries_max=1, wait_seconds=0.1)
