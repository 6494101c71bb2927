"""Time, memory, disk and places are limited; what ends early gives everything back; missing files are never silence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest

from engine.engine import Engine, EngineLimits
from engine.errors import (
    EngineError,
    QueryCancelled,
    QueryFailed,
    QueryMemoryExhausted,
    QueryTimeout,
    QueryTooLarge,
    TooManyQueries,
)
from engine.running import Phase
from storage.errors import SnapshotTooOld
from storage.schema import TypeKind
from tests.harness.queries import World, make_table, sorted_rows
from tests.harness.waiting import until

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from engine.planner import PlanRequest, Started
    from storage.schema import Table, TableSnapshot

ENDLESS = "SELECT sum(value) FROM generate_series(1, 1000000000000) WHERE value % 7 = 3"
WINDOW = (
    "SELECT max(s) FROM (SELECT sum(value) OVER (ORDER BY value ROWS 100 PRECEDING) AS s"
    " FROM generate_series(1, 1000000000000))"
)
ROWS = "SELECT value FROM generate_series(1, 1000000000000)"
QUIET_CPU = 0.1
"""Of a core: what an idle process may use while others run tests."""


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def becomes_idle(seconds: float = 20.0) -> bool:
    """Whether this process stops using its cores within `seconds`."""
    for _ in range(int(seconds / 0.25)):
        before = cpu_seconds()
        await asyncio.sleep(0.25)
        if cpu_seconds() - before < 0.25 * QUIET_CPU:
            return True
    return False


@pytest.fixture
def world(tmp_path: Path) -> World:
    filled = World(tmp_path)
    filled.add_file([{"time": t, "host": f"h{t % 10}", "usage": t} for t in range(1000)])
    return filled


@pytest.mark.parametrize(
    "statement",
    [
        ENDLESS,
        "SELECT count(*) FROM generate_series(1, 1000000000000)",
        "WITH RECURSIVE a AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM a) SELECT count(*) FROM a",
        "SELECT value % 1000003 AS k, count(*) FROM generate_series(1, 1000000000000) GROUP BY k",
        WINDOW,
    ],
)
def test_an_endless_query_times_out_and_stops(world: World, statement: str) -> None:
    async def ask(engine: Engine) -> None:
        with pytest.raises(QueryTimeout, match="time limit"):
            await world.rows(engine, statement, timeout_seconds=0.5)
        assert await becomes_idle()
        assert await world.rows(engine, "SELECT count(*) AS n FROM cpu") == [{"n": 1000}]

    world.run(ask)


def test_the_engine_s_limit_holds_for_longer_wishes(world: World) -> None:
    with pytest.raises(QueryTimeout):
        world.ask(ENDLESS, {"query_seconds": 0.3}, timeout_seconds=1000.0)


def test_other_queries_run_beside_a_join_that_cannot_be_stopped() -> None:
    """Upstream: a join without a result to hand on does not look up. It is in a process of its own here."""
    script = (
        "import asyncio, os, pathlib, sys\n"
        "from tests.harness.queries import World\n"
        "from engine.errors import QueryTimeout\n"
        "world = World(pathlib.Path('.'))\n"
        "big = 'SELECT count(*) FROM generate_series(1, 300000) a CROSS JOIN generate_series(1, 1000000) b'\n"
        "big += ' WHERE a.value + b.value < 0'\n"
        "async def main():\n"
        "    engine = world.engine()\n"
        "    for _ in range(2):\n"
        "        try:\n"
        "            await world.rows(engine, big, timeout_seconds=0.3)\n"
        "        except QueryTimeout:\n"
        "            print('timeout')\n"
        "    loop = asyncio.get_running_loop()\n"
        "    start = loop.time()\n"
        "    for _ in range(5):\n"
        "        rows = await world.rows(engine, 'SELECT count(*) AS n FROM generate_series(1, 1000)')\n"
        "        assert rows == [{'n': 1000}]\n"
        "    print('ok' if loop.time() - start < 10 else 'slow', flush=True)\n"
        "    os._exit(0)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout.split() == ["timeout", "timeout", "ok"], done.stderr


def test_a_reader_that_dawdles_is_timed_out_and_its_place_is_free(world: World) -> None:
    async def ask(engine: Engine) -> None:
        stream = await world.start(engine, ROWS, timeout_seconds=0.3)
        await anext(stream)
        await asyncio.sleep(0.5)
        assert await world.rows(engine, "SELECT 1 AS x") == [{"x": 1}]
        with pytest.raises(QueryTimeout):
            await anext(stream)

    world.run(ask, queries_max=1)


def test_closing_a_stream_stops_the_query(world: World) -> None:
    async def ask(engine: Engine) -> None:
        stream = await world.start(engine, ROWS)
        assert (await anext(stream)).num_rows
        await stream.aclose()
        await stream.aclose()
        with pytest.raises(QueryCancelled):
            await anext(stream)
        assert await becomes_idle()
        assert await world.rows(engine, "SELECT 1 AS x") == [{"x": 1}]

    world.run(ask, queries_max=1)


def test_closing_a_stream_wakes_its_reader(world: World) -> None:
    async def ask(engine: Engine) -> None:
        stream = await world.start(engine, "SELECT 1 AS x UNION ALL (" + ROWS + " WHERE value < 0)")
        await anext(stream)
        reader = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.1)
        await stream.aclose()
        with pytest.raises(QueryCancelled):
            await reader

    world.run(ask)


def test_a_cancelled_caller_cancels_the_query(world: World) -> None:
    async def ask(engine: Engine) -> None:
        task = asyncio.ensure_future(world.start(engine, ENDLESS))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await becomes_idle()
        assert await world.rows(engine, "SELECT 1 AS x") == [{"x": 1}]

    world.run(ask, queries_max=1)


def test_queries_beyond_the_limits_wait_or_are_refused(world: World) -> None:
    async def ask(engine: Engine) -> None:
        first = await world.start(engine, ROWS)
        waiting = asyncio.ensure_future(world.rows(engine, "SELECT 1 AS x"))
        await asyncio.sleep(0.05)
        with pytest.raises(TooManyQueries, match="1 queries run and 1 wait"):
            await world.start(engine, "SELECT 1")
        await first.aclose()
        assert await waiting == [{"x": 1}]
        second = await world.start(engine, ROWS)
        with pytest.raises(TooManyQueries, match="no place"):
            await world.start(engine, "SELECT 1", timeout_seconds=0.1)
        await second.aclose()

    world.run(ask, queries_max=1, waiting_max=1)


def test_of_memory_and_disk_each_query_has_its_part(tmp_path: Path) -> None:
    def parts(query_bytes_max: int) -> tuple[int, int]:
        limits = EngineLimits(memory_bytes=100, query_bytes_max=query_bytes_max, spill_bytes_max=30, queries_max=3)
        found = Engine(str(tmp_path), limits)._planner._limits
        return found.query_bytes_max, found.query_spill_bytes_max

    assert parts(50) == (50, 15)
    assert parts(10) == (10, 10)
    assert parts(400) == (100, 30)


def test_a_query_that_has_ended_is_not_kept_until_its_time_limit(world: World) -> None:
    async def ask(engine: Engine) -> None:
        stream = await world.start(engine, "SELECT 1 AS x")
        assert not stream._timer.cancelled()
        assert len([batch async for batch in stream]) == 1
        assert stream._timer.cancelled()

    world.run(ask)


def test_where_nobody_may_wait_a_query_runs_all_the_same(world: World) -> None:
    async def ask(engine: Engine) -> None:
        first = await world.start(engine, ROWS)
        with pytest.raises(TooManyQueries, match="1 queries run and 0 wait"):
            await world.start(engine, "SELECT 1")
        await first.aclose()
        assert await world.rows(engine, "SELECT 1 AS x") == [{"x": 1}]

    world.run(ask, queries_max=1, waiting_max=0)


@pytest.mark.parametrize("end", [QueryTimeout, asyncio.CancelledError])
def test_a_plan_that_nobody_waits_for_keeps_its_place_until_it_is_made(
    world: World, monkeypatch: pytest.MonkeyPatch, end: type[BaseException]
) -> None:
    """Its thread works on: with the place given back there would be ever more of them."""
    gate = threading.Event()

    async def ask(engine: Engine) -> None:
        real = engine._planner.start

        def start(request: PlanRequest) -> Started:
            assert gate.wait(30.0)
            return real(request)

        monkeypatch.setattr(engine._planner, "start", start)
        limit = 0.2 if end is QueryTimeout else 20.0
        planned = asyncio.ensure_future(world.start(engine, "SELECT 1 AS x", timeout_seconds=limit))
        await until(lambda: [view.phase for view in engine.running.views()] == [Phase.PLANNING])
        if end is asyncio.CancelledError:
            await asyncio.sleep(0.1)  # until the thread has it
            planned.cancel()
        with pytest.raises(end):
            await planned
        with pytest.raises(TooManyQueries):
            await world.start(engine, "SELECT 1", timeout_seconds=0.1)
        gate.set()
        assert await world.rows(engine, "SELECT 1 AS x") == [{"x": 1}]

    try:
        world.run(ask, queries_max=1)
    finally:
        gate.set()


def test_places_are_given_back_by_every_way_out(world: World) -> None:
    async def ask(engine: Engine) -> None:
        for _ in range(3):
            for statement in ("SELECT", "SELECT nope FROM cpu", "SELECT 1/0 FROM cpu", "SELECT * FROM nope"):
                with pytest.raises(EngineError):
                    await world.rows(engine, statement)
            assert len(await world.rows(engine, "SELECT * FROM cpu LIMIT 5")) == 5

    world.run(ask, queries_max=1)


def test_memory_runs_out_for_one_query_and_others_go_on(world: World) -> None:
    hungry = "SELECT array_agg(value) FROM generate_series(1, 100000000)"

    async def ask(engine: Engine) -> None:
        for _ in range(2):
            with pytest.raises(QueryMemoryExhausted, match="more memory"):
                await world.rows(engine, hungry)
            assert await world.rows(engine, "SELECT max(usage) AS m FROM cpu") == [{"m": 999}]

    world.run(ask, memory_bytes=32 * 2**20)


SORT = "SELECT * FROM cpu ORDER BY usage, f0, time"


@pytest.fixture
def large(tmp_path: Path) -> World:
    """300,000 rows of 12 columns: 29 MB."""
    fields = {"usage": TypeKind.INT64} | {f"f{i}": TypeKind.INT64 for i in range(10)}
    world = World(tmp_path, make_table(fields=fields))
    numbers = np.arange(300_000)
    columns = {c.storage_name: pa.array(numbers * (c.id + 7) % 1009) for c in world.table.fields}
    world.add_batch(pa.RecordBatch.from_pydict({"time": pa.array(numbers, pa.timestamp("ns"))} | columns))
    world.checkpoint()
    return world


def test_a_sort_above_the_memory_spills_into_the_folder_and_cleans_up(large: World, tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    seen: list[int] = []

    async def ask(engine: Engine) -> list[int]:
        found = []
        async for batch in await large.start(engine, SORT):
            seen.append(sum(len(files) for _, _, files in os.walk(spill)))
            found += batch.column("usage").to_pylist()
        return found

    usage = large.run(ask, memory_bytes=28 * 2**20, spill_folder=spill)
    assert len(usage) == 300_000
    assert usage == sorted(usage)
    assert max(seen) > 0
    assert not [f for _, _, files in os.walk(spill) for f in files]


@pytest.mark.parametrize("limits", [{"spill_bytes_max": 0}, {"spill_bytes_max": 2**20}])
def test_spilling_is_limited(large: World, tmp_path: Path, limits: dict[str, Any]) -> None:
    with pytest.raises(QueryMemoryExhausted):
        large.ask(SORT, {"memory_bytes": 28 * 2**20, "spill_folder": tmp_path} | limits)


class Vanishing(World):
    """Deletes files behind the back of each snapshot, for a number of times."""

    times = 0

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        old = await super().snapshot(tables)
        if self.times:
            self.times -= 1
            part = self.part()
            for file in part.files:
                (self.folder / file.path).unlink()
            part.tail, part.files = list(part.history), []
            self.checkpoint()
        return old


def test_a_file_that_vanished_is_never_read_as_empty(tmp_path: Path) -> None:
    """LOG L16: DataFusion takes a missing file for an empty one; the engine plans again."""
    world = Vanishing(tmp_path)
    world.add_file([{"time": t, "usage": t} for t in range(10)])
    world.times = 2
    assert world.ask("SELECT count(*) AS n FROM cpu") == [{"n": 10}]
    assert len(world.asked) == 3
    world.times = 10
    with pytest.raises(SnapshotTooOld, match="gone"):
        world.ask("SELECT count(*) AS n FROM cpu")


def test_only_files_that_a_query_reads_must_be_there(tmp_path: Path) -> None:
    """LOG L16: of tens of thousands a query of one hour looks after a few; a missing one among those is seen."""
    world = World(tmp_path)
    for low in (0, 1000, 2000):
        world.add_file([{"time": low + t, "usage": t} for t in range(10)])
    (world.folder / world.part().files[2].path).unlink()
    second = "1970-01-01T00:00:00"
    query = f"SELECT count(*) AS n FROM cpu WHERE time >= '{second}.000001' AND time < '{second}.00000{{}}'"
    assert world.ask(query.format("2")) == [{"n": 10}]
    with pytest.raises(SnapshotTooOld, match="1 files"):
        world.ask(query.format("2001"))
    with pytest.raises(SnapshotTooOld, match="1 files"):
        world.ask("SELECT count(*) AS n FROM cpu WHERE usage < 5")


def test_a_file_that_vanishes_between_plan_and_read_is_an_error(world: World) -> None:
    async def ask(engine: Engine) -> None:
        await world.rows(engine, "SELECT max(usage) FROM cpu")
        rows = await world.rows(engine, "SELECT * FROM cpu")
        for file in world.part().files:
            (world.folder / file.path).unlink()
        with pytest.raises(SnapshotTooOld):
            await world.rows(engine, "SELECT * FROM cpu")
        assert len(rows) == 1000

    world.run(ask)


def test_a_damaged_file_is_an_error(world: World) -> None:
    for file in world.part().files:
        (world.folder / file.path).write_bytes(b"PAR1 but not really PAR1")
    with pytest.raises(QueryFailed):
        world.ask("SELECT * FROM cpu")


def test_concurrent_queries_each_see_their_own_snapshot(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.add_file([{"time": t, "usage": 0} for t in range(100)])

    async def reader(engine: Engine, n: int) -> None:
        for _ in range(n):
            before = len(world.expected())
            rows = await world.rows(engine, "SELECT * FROM cpu")
            assert before <= len(rows) <= len(world.expected())

    async def writer() -> None:
        for n in range(60):
            world.add_tail([{"time": 90 + n, "usage": n}])
            if n % 20 == 19:
                world.checkpoint()
            await asyncio.sleep(0)

    async def ask(engine: Engine) -> None:
        await asyncio.gather(writer(), *(reader(engine, 10) for _ in range(4)))
        assert sorted_rows(await world.rows(engine, "SELECT * FROM cpu")) == sorted_rows(world.expected())

    world.run(ask)


def test_the_event_loop_stays_free_while_queries_run(world: World) -> None:
    async def ask(engine: Engine) -> float:
        loop = asyncio.get_running_loop()
        worst = 0.0
        query = asyncio.ensure_future(world.rows(engine, "SELECT sum(value) FROM generate_series(1, 200000000)"))
        while not query.done():
            start = loop.time()
            await asyncio.sleep(0.005)
            worst = max(worst, loop.time() - start)
        await query
        return worst

    assert world.run(ask) < 0.5


def test_close_cancels_and_refuses(world: World) -> None:
    async def ask(engine: Engine) -> None:
        stream = await world.start(engine, ROWS)
        await engine.close()
        with pytest.raises(QueryCancelled, match="closing"):
            await anext(stream)
        with pytest.raises(QueryCancelled, match="closed"):
            await world.start(engine, "SELECT 1")

    world.run(ask)


def test_an_idle_engine_has_not_loaded_datafusion() -> None:
    script = (
        "import sys, asyncio\n"
        "import engine.formats\n"
        "from engine.engine import Engine, EngineLimits\n"
        "engine = Engine('/nowhere', EngineLimits(2**20))\n"
        "asyncio.run(engine.close())\n"
        "print([m for m in sys.modules if m.startswith('datafusion')])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_threads_of_closed_engines_end(world: World) -> None:
    world.ask("SELECT 1")
    with contextlib.suppress(RuntimeError):
        for thread in threading.enumerate():
            if thread.name.startswith("plan"):
                thread.join(5)
    assert not [t for t in threading.enumerate() if t.name.startswith("plan")]


HUNGRY = "SELECT cardinality(array_agg(value)) AS n FROM generate_series(1, 2500000)"
"""Wants 20 MB, which may grow to twice as much."""


def test_a_query_over_its_own_memory_ends_and_others_go_on_unharmed(large: World) -> None:
    """The other one sorts meanwhile, with all the memory that it may have, and gets every row."""

    async def ask(engine: Engine) -> None:
        sorting = await large.start(engine, "SELECT usage, f0, time FROM cpu ORDER BY usage, f0, time")
        with pytest.raises(QueryTooLarge, match=r"one query may have, 16777216 bytes \(query.memory_max\)"):
            await large.rows(engine, HUNGRY)
        assert sum([batch.num_rows async for batch in sorting]) == 300_000

    spills = {"spill_folder": large.folder / "spill"}
    spills["spill_folder"].mkdir()
    large.run(ask, memory_bytes=64 * 2**20, query_bytes_max=16 * 2**20, **spills)
    assert large.ask(HUNGRY, {"memory_bytes": 64 * 2**20}) == [{"n": 2_500_000}], "it wants more than there is for all"


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM cpu",
        "SELECT host, count(*) AS n FROM cpu GROUP BY host",
        "SELECT a.usage FROM cpu a JOIN cpu b ON a.usage = b.usage + 1",
        "SELECT usage FROM cpu ORDER BY usage DESC LIMIT 7",
        "SELECT count(*) AS n FROM cpu WHERE usage < 0",
        "SELECT usage FROM cpu WHERE usage < 0",
        "SELECT usage FROM cpu UNION ALL SELECT usage FROM cpu WHERE host = 'h3'",
    ],
)
def test_memory_of_its_own_changes_no_answer(world: World, statement: str, partitions: int) -> None:
    for numbers in (range(1000, 2000), range(2000, 3000)):
        world.add_file([{"time": t, "host": f"h{t % 10}", "usage": t} for t in numbers])
    world.add_tail([{"time": t, "host": f"h{t % 10}", "usage": t + 1} for t in range(0, 500, 3)])
    limits = {"target_partitions": partitions}
    found = world.ask(statement, limits | {"query_bytes_max": 2**24})
    wanted = world.ask(statement, limits)
    assert found == wanted if "ORDER" in statement else sorted_rows(found) == sorted_rows(wanted)


def test_only_so_many_run_as_there_is_memory_for(world: World) -> None:
    async def ask(engine: Engine) -> None:
        running = [await world.start(engine, ROWS) for _ in range(2)]
        with pytest.raises(TooManyQueries, match="2 running"):
            await world.start(engine, ROWS)
        await running[0].aclose()
        assert await world.rows(engine, "SELECT max(usage) AS m FROM cpu") == [{"m": 999}]
        await running[1].aclose()

    world.run(ask, memory_bytes=32 * 2**20, query_bytes_max=12 * 2**20, wait_seconds=0.1)


def test_what_has_memory_of_its_own_is_stopped_like_others(world: World) -> None:
    async def ask(engine: Engine) -> None:
        for statement in (ENDLESS, WINDOW, ROWS):
            with pytest.raises(QueryTimeout):
                _ = [row async for row in await world.start(engine, statement, timeout_seconds=0.5)]
            assert await becomes_idle()

    world.run(ask, query_bytes_max=16 * 2**20)
