"""The engine on its ladder: what is chosen, what comes back, what is said. Workers are in this process."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

import engine.starting
import storage.datafile
import storage.keys
from engine.engine import Engine, EngineLimits
from engine.errors import QueryMemoryExhausted, QueryTimeout, StatementFailed
from engine.ladder import LadderLimits, Rung
from engine.staged import StagedSource
from engine.stages import Stages
from storage.deletes import RangeDelete, TagValues
from storage.schema import OP_COLUMN, Op, TypeKind
from tests.harness.queries import POOL_BYTES, World, make_table, sorted_rows, to_rows
from tests.harness.stages import LocalWorkers, task_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.batches import Source
    from engine.ladder import Gathered
    from storage.schema import DataFile
    from tests.harness.queries import Row

FIELDS = {"a": TypeKind.INT64, "b": TypeKind.FLOAT64, "text": TypeKind.STRING}
TABLE = make_table("m", ("host", "zone"), FIELDS)
OTHER = make_table("o", ("host",), {"weight": TypeKind.INT64}, id=2)
PARTIAL = LadderLimits(query_bytes_min=1, shuffle_bytes_min=2**40, task_bytes=1)
SHUFFLE = LadderLimits(query_bytes_min=1, shuffle_bytes_min=1, task_bytes=1)
LIMITS = pytest.mark.parametrize("ladder", [PARTIAL, SHUFFLE], ids=["partial/final", "full shuffle"])
GROUPED = "SELECT host, count(*) AS n, sum(a) AS s, max(text) AS t FROM m GROUP BY host"
STATEMENTS = (
    GROUPED,
    "SELECT count(*) AS n FROM m",
    "SELECT zone, avg(b) AS b FROM m WHERE time >= to_timestamp_nanos(30) GROUP BY zone",
    "SELECT m.host, sum(weight) AS w FROM m JOIN o ON m.host = o.host GROUP BY m.host",
    "SELECT host, last_value(a ORDER BY time, a) AS l FROM m WHERE a IS NOT NULL GROUP BY host",
    "SELECT * FROM m WHERE a > 50",
    "SELECT time, host, zone FROM m ORDER BY time DESC, host, zone LIMIT 7",
    "SELECT text FROM m WHERE text = 'nothing is called so'",
)
REFUSED = "a test's workers do not do that"


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Layers that overlap, files that stand alone, and rows that are in memory only, also of one key several times."""
    world = World(tmp_path, TABLE, OTHER)
    for part in range(3):
        for low in range(0, 80, 20):
            rows: list[Row] = [{"time": low + t, "host": f"h{t % 5}", "a": t * part} for t in range(30)]
            rows = [row | {"text": f"text number {row['a']}"} | ({"zone": "z"} if row["a"] % 2 else {}) for row in rows]
            world.add_file(rows, partition=part)
    world.add_file([{"time": 5_000 + t, "host": f"h{t % 5}", "b": t * 0.5} for t in range(200)])
    world.add_tail([{"time": t, "host": f"h{t % 5}", "b": t * 1.0} for t in range(0, 90, 3)], partition=1)
    world.add_file([{"time": t, "host": f"h{t}", "weight": t} for t in range(4)], OTHER)
    return world


class Held:
    """An engine over a world with workers of its own."""

    def __init__(self, world: World, workers: LocalWorkers, ladder: LadderLimits, **limits: Any) -> None:
        self.world = world
        self.workers = workers
        chosen: dict[str, Any] = {"memory_bytes": POOL_BYTES, "query_seconds": 30.0} | limits
        self.limits = EngineLimits(ladder=ladder, **chosen)

    def ask(self, *statements: str) -> list[list[dict[str, Any]]]:
        async def main() -> list[list[dict[str, Any]]]:
            engine = Engine(str(self.world.folder), self.limits, workers=self.workers)
            try:
                return [await self.world.rows(engine, statement) for statement in statements]
            finally:
                await engine.close()

        return asyncio.run(main())


@LIMITS
@pytest.mark.parametrize("statement", STATEMENTS)
def test_merged_rows_and_rows_in_memory_are_the_same_on_every_rung(
    world: World, ladder: LadderLimits, statement: str
) -> None:
    workers = LocalWorkers()
    (got,) = Held(world, workers, ladder).ask(statement)
    assert sorted_rows(got) == sorted_rows(world.ask(statement))
    assert workers.runs
    assert workers.is_closed


@LIMITS
@pytest.mark.parametrize("hashes", ["apart", "all the same"])
def test_f22_whole_rows_with_keys_are_merged_on_every_rung(
    tmp_path: Path, ladder: LadderLimits, hashes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In files and in memory; some of their tags are absent."""
    monkeypatch.setattr(storage.datafile, "SERIES_ROWS_MIN", 1)
    if hashes == "all the same":
        monkeypatch.setattr(storage.keys, "key_hash", lambda _: 7)
    world = World(tmp_path, TABLE, OTHER)
    for part in range(2):
        for step in (1, 2, 5):
            rows: list[Row] = [
                {"time": t, "host": f"h{t % 7}", "a": step, "b": t * 0.5, "text": f"{step}"}
                for t in range(0, 200, step)
            ]
            world.add_tail([row | ({"zone": "z"} if row["time"] % 3 else {}) for row in rows], partition=part)
            if part or step < 5:
                world.checkpoint(partition=part)
    world.add_file([{"time": t, "host": f"h{t}", "weight": t} for t in range(4)], OTHER)
    assert {file.kind for part in world.of(TABLE).partitions for file in part.files} == {"parquet-keys-whole"}
    assert "RightAnti" in world.ask(f"EXPLAIN {GROUPED}")[1]["plan"]
    workers = LocalWorkers()
    found = Held(world, workers, ladder).ask(*STATEMENTS)
    assert len(workers.runs) == len(STATEMENTS)
    for statement, got in zip(STATEMENTS, found, strict=True):
        assert sorted_rows(got) == sorted_rows(world.ask(statement))
    (count,) = world.ask("SELECT count(*) AS n, sum(a) AS a FROM m")
    assert count == {"n": 400, "a": sum(row["a"] for row in world.expected())}


@LIMITS
@pytest.mark.parametrize("deletes", [3, 40], ids=["conditions", "joined against"])
def test_l25_l26_what_deletes_take_is_left_out_on_every_rung(world: World, ladder: LadderLimits, deletes: int) -> None:
    """Rows that delete others, in files and in memory; range deletes that wait, and that came since."""
    for part in range(3):
        world.add_tail(
            [{"time": t, "host": f"h{t % 5}", OP_COLUMN: Op.DELETE.code} for t in range(3, 90, 7)], None, part
        )
        world.add_tail(
            [{"time": t, "host": f"h{t % 5}", "a": 1, OP_COLUMN: Op.PUT.code} for t in range(1, 90, 9)], None, part
        )
        for n in range(deletes):
            tags = (TagValues(1, (f"h{n % 5}", "x")), TagValues(2, ((None, "z")[n % 2],)))
            world.add_delete(RangeDelete(n, n + 2, tags), None, part)
        if part:
            world.checkpoint(partition=part)
            world.add_delete(RangeDelete(60, 62), None, part)
            world.add_tail([{"time": t, "host": "h1", "a": t} for t in range(61, 90)], None, part)
    assert any(file.has_ops for part in world.of(TABLE).partitions for file in part.files)
    workers = LocalWorkers()
    statements = [GROUPED, "SELECT count(*) AS n, sum(a) AS a FROM m", "SELECT * FROM m WHERE a >= 0"]
    found = Held(world, workers, ladder).ask(*statements)
    assert len(workers.runs) == len(statements)
    for statement, got in zip(statements, found, strict=True):
        assert sorted_rows(got) == sorted_rows(world.ask(statement))
    assert sorted_rows(found[2]) == sorted_rows([row for row in world.expected() if "a" in row])


@LIMITS
def test_a_union_has_the_types_that_fit_all_its_parts_on_every_rung(world: World, ladder: LadderLimits) -> None:
    """DataFusion's planner says those of the first part: text that looks like a number is no number for that."""
    world.add_file([{"time": t, "host": f"00{t}", "weight": 3} for t in range(9)], OTHER)
    numbers, texts = "SELECT weight AS x FROM o WHERE weight = 2", "SELECT host FROM o WHERE host = '007'"
    statements: dict[str, list[Row]] = {
        f"{numbers} UNION ALL {texts}": [{"x": "2"}, {"x": "007"}],
        f"{numbers} UNION SELECT 1.5 * weight FROM o WHERE weight IN (1, 2)": [{"x": 1.5}, {"x": 2.0}, {"x": 3.0}],
    }
    for statement, rows in statements.items():
        workers = LocalWorkers()
        (got,) = Held(world, workers, ladder).ask(statement)
        assert sorted_rows(got) == sorted_rows(rows)
        assert sorted_rows(world.ask(statement)) == sorted_rows(rows)
        assert len(workers.runs) == 1


@pytest.mark.parametrize("slots", [0, 3], ids=["here", "on workers"])
def test_a_result_says_the_types_of_its_rows_before_they_come(world: World, slots: int) -> None:
    async def main() -> None:
        engine = Engine(str(world.folder), Held(world, LocalWorkers(), SHUFFLE).limits, workers=LocalWorkers(slots))
        try:
            stream = await world.start(engine, "SELECT a AS x FROM m WHERE a < 9 UNION ALL SELECT text FROM m")
            batches = [batch async for batch in stream]
            assert {tuple(batch.schema.types) for batch in batches} == {tuple(stream.schema.types)}
            assert {tuple(batch.schema.names) for batch in batches} == {("x",)} == {tuple(stream.schema.names)}
        finally:
            await engine.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    ("statement", "runs"),
    [
        ("SELECT host, weight FROM o", 0),
        ("SELECT host, weight FROM o ORDER BY weight, host", 0),
        ("SELECT a.host, b.weight FROM o AS a JOIN o AS b ON a.host = b.host", 0),
        ("SELECT host, weight FROM o ORDER BY weight, host LIMIT 3", 1),
        ("SELECT host, weight FROM o WHERE host NOT IN (SELECT host FROM m WHERE host IS NOT NULL)", 1),
        ("SELECT host, weight FROM o WHERE weight > 2", 1),
    ],
)
def test_every_row_of_a_table_is_not_sent_to_workers_and_back(world: World, statement: str, runs: int) -> None:
    world.add_file([{"time": t, "host": f"h{t}", "weight": t} for t in range(100, 120)], OTHER)
    workers = LocalWorkers()
    (rows,) = Held(world, workers, SHUFFLE).ask(statement)
    assert sorted_rows(rows) == sorted_rows(world.ask(statement))
    assert len(workers.runs) == runs


@pytest.mark.parametrize("losses", [0, 2])
def test_only_a_statement_that_ran_here_says_so(world: World, losses: int) -> None:
    lines = plan_lines(Held(world, LocalWorkers(losses=losses), SHUFFLE).ask(f"EXPLAIN ANALYZE {GROUPED}")[0])
    assert "ran here" not in lines
    assert "stage 0 task 0" in lines


def test_a_statement_that_ran_out_of_memory_once_is_not_given_to_workers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = LocalWorkers(failure=REFUSED)
    real = engine.starting.started

    def started(*arguments: Any) -> Source:
        if len(workers.runs) == 1 and not refused:
            refused.append(True)
            raise QueryMemoryExhausted("a test has it all")
        return real(*arguments)

    refused: list[bool] = []
    wanted = world.ask(GROUPED)
    monkeypatch.setattr("engine.planner.started", started)
    (rows,) = Held(world, workers, SHUFFLE).ask(GROUPED)
    assert sorted_rows(rows) == sorted_rows(wanted)
    assert (len(refused), len(workers.runs)) == (1, 1)


def test_a_source_that_is_dropped_while_it_starts_is_dropped(world: World) -> None:
    dropped: list[bool] = []

    class Late:
        async def next(self) -> None:
            return None

        def drop(self) -> None:
            dropped.append(True)

    async def main() -> None:
        stages = Stages((), ())
        source = StagedSource(
            stages, LocalWorkers(failure=REFUSED), task_context(), pa.schema([]), lambda: start(source), 1
        )
        assert await source.next() is None

    def start(source: StagedSource) -> Late:
        source.drop()
        return Late()

    asyncio.run(main())
    assert dropped == [True]


@pytest.mark.parametrize(
    ("limits", "slots", "runs"),
    [(SHUFFLE, 3, 1), (SHUFFLE, 1, 0), (SHUFFLE, 0, 0), (LadderLimits(query_bytes_min=2**40), 3, 0)],
)
def test_workers_are_used_when_it_is_worth_it_and_some_are_free(
    world: World, limits: LadderLimits, slots: int, runs: int
) -> None:
    workers = LocalWorkers(slots)
    (rows,) = Held(world, workers, limits).ask(GROUPED)
    assert sorted_rows(rows) == sorted_rows(world.ask(GROUPED))
    assert len(workers.runs) == runs


def test_a_small_statement_asks_for_no_workers(world: World) -> None:
    """Ray starts when somebody wants to know how many there are."""

    class Unasked(LocalWorkers):
        def slots(self) -> int:
            raise AssertionError("nobody needs workers")

    Held(world, Unasked(), LadderLimits(query_bytes_min=2**40)).ask(GROUPED, "EXPLAIN SELECT 1")


@pytest.mark.parametrize(("losses", "runs"), [(1, 2), (2, 3), (3, 3)])
def test_stages_run_again_where_workers_are_lost_and_at_last_here(world: World, losses: int, runs: int) -> None:
    workers = LocalWorkers(losses=losses)
    (rows,) = Held(world, workers, SHUFFLE).ask(GROUPED)
    assert sorted_rows(rows) == sorted_rows(world.ask(GROUPED))
    assert len(workers.runs) == runs


def test_a_task_that_fails_makes_the_statement_run_here(world: World) -> None:
    workers = LocalWorkers(failure=REFUSED)
    (rows,) = Held(world, workers, SHUFFLE).ask(GROUPED)
    assert sorted_rows(rows) == sorted_rows(world.ask(GROUPED))
    assert len(workers.runs) == 1


def test_l16_files_that_went_away_while_workers_had_the_statement_are_no_empty_ones(world: World) -> None:
    """It is planned once more where it runs after all: DataFusion then takes a file that is not there for empty."""

    class Overtaken(LocalWorkers):
        async def run(self, stages: Stages, began: Callable[[int], None]) -> Gathered:
            for part in range(3):
                files = world.part(TABLE, part).files
                files[:] = [moved(world, file) for file in files]
            world.sequence += 1
            return await super().run(stages, began)

    wanted = world.ask(GROUPED)
    workers = Overtaken(failure=REFUSED)
    (rows,) = Held(world, workers, SHUFFLE).ask(GROUPED)
    assert sorted_rows(rows) == sorted_rows(wanted)
    assert len(workers.runs) > 1, "over a new snapshot"


def moved(world: World, file: DataFile) -> DataFile:
    """The same rows under another name, as after a merge; the old one is collected. Twice moved it keeps its name."""
    if file.path.startswith("data/new-"):
        return file
    path = f"data/new-{file.path.rpartition('/')[2]}"
    (world.folder / file.path).rename(world.folder / path)
    return dataclasses.replace(file, path=path)


async def place(held: Held, workers: LocalWorkers, statement: str) -> tuple[str | None, int]:
    """Where `system.queries` says that a statement runs, when its first batch is there."""
    engine = Engine(str(held.world.folder), held.limits, workers=workers)
    try:
        stream = await held.world.start(engine, statement)
        (view,) = engine.running.views()
        await stream.aclose()
        return view.rung, view.workers
    finally:
        await engine.close()


def test_where_a_statement_runs_is_listed(world: World) -> None:
    def placed(workers: LocalWorkers, ladder: LadderLimits, statement: str = GROUPED) -> tuple[str | None, int]:
        return asyncio.run(place(Held(world, workers, ladder), workers, statement))

    assert placed(LocalWorkers(5), PARTIAL) == (Rung.PARTIAL_FINAL, 5)
    assert placed(LocalWorkers(4), SHUFFLE) == (Rung.FULL_SHUFFLE, 4)
    assert placed(LocalWorkers(losses=2), SHUFFLE) == (Rung.FULL_SHUFFLE, 3)
    here = (Rung.LOCAL, 0)
    assert placed(LocalWorkers(0), SHUFFLE) == here
    assert placed(LocalWorkers(), LadderLimits()) == here
    assert placed(LocalWorkers(), SHUFFLE, f"EXPLAIN {GROUPED}") == here
    assert placed(LocalWorkers(failure=REFUSED), SHUFFLE) == here
    assert placed(LocalWorkers(losses=9), SHUFFLE) == here


def test_what_cannot_be_computed_says_so_as_it_does_in_one_process(world: World) -> None:
    with pytest.raises(StatementFailed):
        Held(world, LocalWorkers(), SHUFFLE).ask("SELECT host, sum(1 / (a - a)) AS s FROM m GROUP BY host")


def test_more_than_half_of_the_memory_does_not_come_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Any = StagedSource.__init__

    def with_little(self: StagedSource, *arguments: Any) -> None:
        real(self, *arguments[:-2], 100)

    monkeypatch.setattr(StagedSource, "__init__", with_little)
    workers = LocalWorkers()
    (rows,) = Held(world, workers, SHUFFLE).ask(f"EXPLAIN ANALYZE {GROUPED}")
    assert workers.runs
    assert "bytes came back" in plan_lines(rows)["ran here"]


def test_the_time_limit_holds_while_workers_work(world: World) -> None:
    cancelled: list[bool] = []

    class Endless(LocalWorkers):
        async def run(self, stages: Stages, began: Callable[[int], None]) -> Gathered:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.append(True)
                raise
            raise AssertionError

    with pytest.raises(QueryTimeout):
        Held(world, Endless(), SHUFFLE, query_seconds=3.0).ask(GROUPED)
    assert cancelled == [True]


@LIMITS
def test_parameters_and_an_insert_go_the_same_way(world: World, ladder: LadderLimits) -> None:
    workers = LocalWorkers()
    limits = EngineLimits(POOL_BYTES, ladder=ladder)

    async def main() -> tuple[list[Row], str, list[Row]]:
        engine = Engine(str(world.folder), limits, workers=workers)
        try:
            counted = await world.rows(engine, "SELECT count(*) AS n FROM m WHERE host = $h", params={"h": "h3"})
            insert = "INSERT INTO o (time, host, weight) SELECT max(time), host, count(*) FROM m GROUP BY host"
            stream = await world.start(engine, insert, may_write=True)
            assert stream.change is not None
            return counted, stream.change.table, [row async for batch in stream for row in to_rows(batch)]
        finally:
            await engine.close()

    counted, target, rows = asyncio.run(main())
    assert counted == world.ask("SELECT count(*) AS n FROM m WHERE host = 'h3'")
    assert target == "o"
    wanted = world.ask("SELECT max(time) AS time, host, count(*) AS weight FROM m GROUP BY host")
    assert sorted_rows(rows) == sorted_rows(wanted)
    assert len(workers.runs) == 2


def plan_lines(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["plan_type"]: row["plan"] for row in rows}


@LIMITS
def test_explain_shows_rung_and_stages(world: World, ladder: LadderLimits) -> None:
    workers = LocalWorkers()
    lines = plan_lines(Held(world, workers, ladder).ask(f"EXPLAIN {GROUPED}")[0])
    assert {"logical_plan", "physical_plan"} < lines.keys()
    assert lines["rung"].startswith("partial/final: " if ladder is PARTIAL else "full shuffle: ")
    stages = lines["stages"].splitlines()
    assert stages[0].startswith("stage 0: ")
    assert [line for line in stages if line.endswith(": here")]
    assert not workers.runs


def test_explain_says_why_a_statement_stays_here(world: World) -> None:
    lines = plan_lines(Held(world, LocalWorkers(slots=0), SHUFFLE).ask(f"EXPLAIN {GROUPED}")[0])
    assert lines["rung"] == "local stream: too few workers in this test"
    assert "stages" not in lines


def test_explain_analyze_has_the_figures_of_each_task(world: World) -> None:
    workers = LocalWorkers()
    lines = plan_lines(Held(world, workers, SHUFFLE).ask(f"EXPLAIN ANALYZE {GROUPED}")[0])
    tasks = [name for name in lines if name.startswith("stage ")]
    assert len(tasks) == len(workers.tasks) > 2
    assert "rows and" in lines[tasks[0]]
    assert lines["rows"] == str(len(world.ask(GROUPED)))


def test_explain_analyze_says_that_it_ran_here_after_all(world: World) -> None:
    lines = plan_lines(Held(world, LocalWorkers(failure=REFUSED), SHUFFLE).ask(f"EXPLAIN ANALYZE {GROUPED}")[0])
    assert lines["ran here"] == REFUSED
    assert "AggregateExec" in lines["Plan with Metrics"]


def test_explain_without_workers_is_datafusions(world: World) -> None:
    names = [row["plan_type"] for row in world.ask(f"EXPLAIN {GROUPED}")]
    assert names == ["logical_plan", "physical_plan"]
