"""Coalescing, on a Backend in memory: who waits for whom, and whose errors are whose."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any

import pytest

from nodes.backend import ColumnSpec, DropTable, EnsureTable, Principal
from nodes.gateway.coalesce import ATTEMPTS_MAX, Coalescer, WriteReport
from nodes.gateway.faults import BadRequest
from nodes.metrics import Metrics
from storage.errors import (
    MemoryExhausted,
    NoSuchTable,
    RequestTooLarge,
    SchemaConflict,
    StorageError,
    StoreUnavailable,
)
from storage.schema import Role, TypeKind
from tests.harness.gateway import reference_parser
from tests.harness.memory_backend import MemoryBackend, rows_of
from wire.lineprotocol.model import Precision

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

ME = Principal()


class Bench:
    """A coalescer, its Backend, and short ways to write."""

    def __init__(self) -> None:
        self.backend = MemoryBackend()
        self.metrics = Metrics(process=False)
        self.coalescer = Coalescer(self.backend, reference_parser, self.metrics)

    async def write(
        self,
        body: str,
        *,
        whole: bool = False,
        database: str = "db",
        precision: Precision = Precision.NANOSECOND,
        principal: Principal = ME,
        key: str = "",
    ) -> WriteReport:
        return await self.coalescer.write(
            database, precision, body.encode(), is_all_or_nothing=whole, principal=principal, idempotency_key=key
        )

    async def write_all(self, *bodies: str, whole: bool = False) -> list[WriteReport | BaseException]:
        return await asyncio.gather(*(self.write(b, whole=whole) for b in bodies), return_exceptions=True)

    async def settle(self) -> None:
        """Let everything run that can run without the gate."""
        for _ in range(200):
            await asyncio.sleep(0)

    def rows(self, table: str, database: str = "db") -> list[dict[str, Any]]:
        return rows_of(self.backend.table(database, table))

    def count(self, name: str) -> int:
        return self.metrics.counter(name, "", "db").of("db").value


def bench(test: Callable[[Bench], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    @functools.wraps(test)
    def run() -> None:
        async def main() -> None:
            part = Bench()
            try:
                async with asyncio.timeout(30):
                    await test(part)
            finally:
                await part.coalescer.aclose()

        asyncio.run(main())

    del run.__wrapped__  # pytest would look for a fixture called "b"
    return run


def messages(report: WriteReport | BaseException) -> Sequence[tuple[int, str]]:
    assert isinstance(report, WriteReport), report
    return [(error.line, error.message) for error in report.errors]


@bench
async def test_one_body_is_written_under_storage_names(b: Bench) -> None:
    assert await b.write('cpu,host=a,az=1 v=1.5,n=2i,s="x",t=true,u=3u 7\ncpu,host=b v=2 8') == WriteReport()
    assert b.rows("cpu") == [
        {"time": 7, "host": "a", "az": "1", "v": 1.5, "n": 2, "s": "x", "t": True, "u": 3},
        {"time": 8, "host": "b", "v": 2.0},
    ]
    schema = b.backend.writes[0][0].rows.schema
    assert schema.names == ["time", "c1", "c2", "c3", "c4", "c5", "c6", "c7"]


@bench
async def test_bodies_that_wait_are_parsed_and_written_together(b: Bench) -> None:
    await b.write("m,t=0 v=0 0")
    b.backend.write_gate = asyncio.Event()
    first = asyncio.create_task(b.write("m,t=1 v=1 1"))
    await b.settle()
    others = asyncio.create_task(b.write_all(*(f"m,t={n} v={n} {n}" for n in range(2, 40))))
    await b.settle()
    assert len(b.backend.writes) == 1
    b.backend.write_gate.set()
    assert await first == WriteReport()
    assert await others == [WriteReport()] * 38
    assert len(b.backend.writes) == 3
    assert [row["v"] for row in b.rows("m")] == [float(n) for n in range(40)]
    assert b.metrics.counter("runnel_write_groups", "").of().value == 3
    assert b.metrics.counter("runnel_write_bodies", "").of().value == 40


@bench
async def test_each_body_gets_its_own_errors(b: Bench) -> None:
    reports = await b.write_all("m v=1 1", "m v=\nm v=2 2\nm", "bad", "m v=3 3")
    assert [len(messages(report)) for report in reports] == [0, 2, 1, 0]
    assert [line for line, _ in messages(reports[1])] == [1, 3]
    assert [line for line, _ in messages(reports[2])] == [1]
    assert [row["v"] for row in b.rows("m")] == [1.0, 2.0, 3.0]
    assert b.count("influxdb3_write_lines") == 3
    assert b.count("influxdb3_write_lines_rejected") == 3


@bench
async def test_all_or_nothing_is_judged_for_each_body(b: Bench) -> None:
    reports = await asyncio.gather(
        b.write("m v=1 1\nm v=", whole=True), b.write("m v=2 2\nm v="), b.write("m v=3 3", whole=True)
    )
    assert [len(messages(report)) for report in reports] == [1, 1, 0]
    assert [report.rejected for report in reports] == [2, 1, 0]
    assert [row["v"] for row in b.rows("m")] == [2.0, 3.0]


@bench
async def test_a_refused_line_changes_nothing_in_the_catalog(b: Bench) -> None:
    await b.write("m,new=1 f=1,f=2 1\nother v=\n")
    assert b.backend.alters == []
    assert b.backend.catalog.database("db") is None
    await b.write('m,new=1 a=1 1\nm,wrong=1 a="x",extra=1 2')
    table = b.backend.catalog.table("db", "m")
    assert table is not None
    assert [column.name for column in table.columns] == ["time", "new", "a"]


@bench
async def test_only_new_columns_are_asked_for(b: Bench) -> None:
    await b.write("m,a=1 x=1 1")
    await b.write("m,a=1 x=2 2")
    await b.write("m,a=1,b=2 x=3,y=4i 3")
    assert b.backend.alters == [
        [
            EnsureTable(
                "db", "m", (ColumnSpec("a", Role.TAG, TypeKind.STRING), ColumnSpec("x", Role.FIELD, TypeKind.FLOAT64))
            )
        ],
        [
            EnsureTable(
                "db", "m", (ColumnSpec("b", Role.TAG, TypeKind.STRING), ColumnSpec("y", Role.FIELD, TypeKind.INT64))
            )
        ],
    ]


@bench
async def test_a_concurrent_change_means_parsing_again(b: Bench) -> None:
    """Another node makes ``v`` a string between our parse and our change."""
    original = b.backend.alter

    async def racing(changes: Any, principal: Principal) -> Any:
        b.backend.alter = original  # type: ignore[method-assign]
        await original([EnsureTable("db", "m", [ColumnSpec("v", Role.FIELD, TypeKind.STRING)])], principal)
        return await original(changes, principal)

    b.backend.alter = racing  # type: ignore[method-assign]
    report = await b.write('m v=1 1\nm v="x" 2')
    assert messages(report) == [
        (
            1,
            (
                "invalid column type for column 'v', expected iox::column_type::field::string, "
                "got iox::column_type::field::float"
            ),
        )
    ]
    assert b.rows("m") == [{"time": 2, "v": "x"}]


@bench
async def test_a_catalog_that_never_agrees_ends_in_an_error(b: Bench) -> None:
    b.backend.fail_alters = [SchemaConflict("again") for _ in range(ATTEMPTS_MAX)]
    with pytest.raises(SchemaConflict):
        await b.write("m v=1 1")
    assert await b.write("m v=1 1") == WriteReport()


@bench
async def test_a_table_dropped_before_the_write_is_made_again(b: Bench) -> None:
    await b.write("m v=1 1")
    original = b.backend.write

    async def racing(batches: Any, principal: Principal, *, idempotency_key: str = "") -> None:
        b.backend.write = original  # type: ignore[method-assign]
        await b.backend.alter([DropTable("db", "m")], principal)
        b.backend.rows.clear()
        await original(batches, principal)

    b.backend.write = racing  # type: ignore[method-assign]
    assert await b.write("m v=2 2") == WriteReport()
    assert b.rows("m") == [{"time": 2, "v": 2.0}]


@bench
async def test_when_one_table_of_several_went_only_its_rows_are_written_again(b: Bench) -> None:
    await b.write("kept v=1 1\ngone v=1 1\nquiet v=0 0")
    original = b.backend.write

    async def racing(batches: Any, principal: Principal, *, idempotency_key: str = "") -> None:
        b.backend.write = original  # type: ignore[method-assign]
        await b.backend.alter([DropTable("db", "gone")], principal)
        await original([batch for batch in batches if batch.table.name != "gone"], principal)
        error = NoSuchTable("gone")
        error.tables = frozenset(batch.table.id for batch in batches if batch.table.name == "gone")
        raise error

    b.backend.write = racing  # type: ignore[method-assign]
    reports = await b.write_all("kept v=2 2\ngone v=2 2", "quiet v=3 3")
    assert reports == [WriteReport(), WriteReport()]
    assert [row["v"] for row in b.rows("kept")] == [1.0, 2.0]
    assert [row["v"] for row in b.rows("quiet")] == [0.0, 3.0]
    assert b.rows("gone")[-1]["v"] == 2.0


@bench
async def test_a_table_that_is_always_gone_ends_in_an_error(b: Bench) -> None:
    b.backend.fail_writes = [NoSuchTable("gone") for _ in range(ATTEMPTS_MAX)]
    with pytest.raises(NoSuchTable):
        await b.write("m v=2 2")


@bench
async def test_a_failed_write_fails_its_bodies_and_no_others(b: Bench) -> None:
    b.backend.fail_writes = [StoreUnavailable("no answer")]
    reports = await b.write_all("m v=1 1", "m v=2 2")
    assert [type(report) for report in reports] == [StoreUnavailable, StoreUnavailable]
    assert await b.write("m v=3 3") == WriteReport()
    assert b.rows("m") == [{"time": 3, "v": 3.0}]
    assert b.count("influxdb3_write_lines") == 1


@bench
async def test_a_retriable_change_failure_is_everyones_answer(b: Bench) -> None:
    b.backend.fail_alters = [MemoryExhausted("full")]
    reports = await b.write_all("m v=1 1", "m v=2 2")
    assert [type(report) for report in reports] == [MemoryExhausted, MemoryExhausted]


@bench
async def test_one_bodys_refused_table_does_not_cost_the_others(b: Bench) -> None:
    await b.write("m v=0 0")
    b.backend.columns_max = 3
    reports = await b.write_all("m v=1 1", "wide a=1,b=1,c=1,d=1 1\nm v=2 2", "m v=3 3")
    limit = "Update to schema would exceed number of columns per table limit of 3 columns"
    assert [messages(report) for report in reports] == [[], [(1, limit)], []]
    assert [report.is_over_limit for report in reports if isinstance(report, WriteReport)] == [False, True, False]
    assert [row["v"] for row in b.rows("m")] == [0.0, 1.0, 2.0, 3.0]
    assert b.backend.catalog.table("db", "wide") is None


@bench
async def test_over_the_column_limit_only_lines_with_new_columns_are_refused(b: Bench) -> None:
    await b.write("m,t=a x=1 0")
    b.backend.columns_max = 2
    report = await b.write("m,t=a x=1 1\nm,t=a x=2,y=1 2\nm,t=a x=3 3\nm,t=a,u=b x=4 4")
    assert [line for line, _ in messages(report)] == [2, 4]
    assert report.errors[0].original == "m,t=a x=2,y=1 2"
    assert report.rejected == 2
    assert b.rows("m") == [{"time": n, "t": "a", "x": float(n or 1)} for n in (0, 1, 3)]


@bench
async def test_over_a_limit_all_or_nothing_writes_nothing(b: Bench) -> None:
    b.backend.columns_max = 2
    report = await b.write("m x=1 1\nwide a=1,b=1,c=1 1", whole=True)
    assert len(report.errors) == 1
    assert report.rejected == 2
    assert report.is_over_limit
    assert b.backend.writes == []
    assert b.backend.catalog.table("db", "m") is None


@bench
async def test_too_much_for_one_object_is_written_apart(b: Bench) -> None:
    b.backend.fail_writes = [RequestTooLarge("together")]
    assert await b.write_all("m v=1 1", "m v=2 2", "m v=3 3") == [WriteReport()] * 3
    assert len(b.backend.writes) == 3
    b.backend.fail_writes = [RequestTooLarge("alone")]
    with pytest.raises(RequestTooLarge):
        await b.write("m v=4 4")


@bench
async def test_databases_do_not_wait_for_each_other(b: Bench) -> None:
    await b.write("m v=0 0", database="other")
    await b.write("m v=0 0")
    b.backend.write_gate = gate = asyncio.Event()
    blocked = asyncio.create_task(b.write("m v=1 1"))
    await b.settle()
    b.backend.write_gate = None
    assert await b.write("m v=1 1", database="other") == WriteReport()
    assert not blocked.done()
    gate.set()
    await blocked


@bench
async def test_precisions_are_lanes_of_one_database(b: Bench) -> None:
    await asyncio.gather(b.write("m v=1 1", precision=Precision.SECOND), b.write("m v=2 2"))
    assert [row["time"] for row in b.rows("m")] == [2, 1_000_000_000]


@bench
async def test_principals_do_not_share_a_write(b: Bench) -> None:
    b.backend.write_gate = asyncio.Event()
    tasks = [asyncio.create_task(b.write(f"m v={n} {n}", principal=Principal(f"p{n}"))) for n in range(3)]
    await b.settle()
    b.backend.write_gate.set()
    await asyncio.gather(*tasks)
    assert len(b.backend.writes) == 3


@bench
async def test_a_client_that_leaves_takes_nobody_with_it(b: Bench) -> None:
    b.backend.write_gate = asyncio.Event()
    leaving = asyncio.create_task(b.write("m v=1 1"))
    staying = asyncio.create_task(b.write("m v=2 2"))
    await b.settle()
    leaving.cancel()
    await b.settle()
    b.backend.write_gate.set()
    assert await staying == WriteReport()
    assert [row["v"] for row in b.rows("m")] == [1.0, 2.0]


@bench
async def test_comments_alone_are_no_write(b: Bench) -> None:
    assert await b.write("# nothing\n\n") == WriteReport()
    assert b.backend.writes == []
    assert b.backend.catalog.database("db") is None


@bench
async def test_lines_without_time_have_one_time_for_good(b: Bench) -> None:
    """Parsed again after a conflict, they keep the time of their arrival."""
    b.backend.fail_alters = [SchemaConflict("once")]
    await b.write("m v=1\nm,t=a v=2")
    times = {row["time"] for row in b.rows("m")}
    assert len(times) == 1
    assert min(times) > 1_600_000_000 * 10**9


@bench
async def test_a_parser_that_breaks_on_one_body_spares_the_others(b: Bench) -> None:
    class Fragile:
        def __init__(self) -> None:
            self.inner = reference_parser()

        def parse(self, bodies: Any, **rest: Any) -> Any:
            if any(b"poison" in body for body in bodies):
                raise ZeroDivisionError("a bug")
            return self.inner.parse(bodies, **rest)

    b.coalescer._make_parser = Fragile
    reports = await b.write_all("m v=1 1", "poison v=1 1", "m v=2 2")
    assert [type(report) for report in reports] == [WriteReport, ZeroDivisionError, WriteReport]
    assert [row["v"] for row in b.rows("m")] == [1.0, 2.0]


@bench
async def test_nothing_is_kept_for_databases_that_are_quiet(b: Bench) -> None:
    await asyncio.gather(*(b.write("m v=1 1", database=f"d{n}") for n in range(20)))
    await b.settle()
    assert not b.coalescer._lanes
    assert not b.coalescer._writers
    assert not b.coalescer._tasks


@bench
async def test_closing_ends_who_still_waits(b: Bench) -> None:
    b.backend.write_gate = asyncio.Event()
    tasks = [asyncio.create_task(b.write(f"m v={n} {n}")) for n in range(3)]
    await b.settle()
    await b.coalescer.aclose()
    assert [type(r) for r in await asyncio.gather(*tasks, return_exceptions=True)] == [asyncio.CancelledError] * 3


def test_every_storage_error_here_is_one() -> None:
    assert all(issubclass(kind, StorageError) for kind in (MemoryExhausted, NoSuchTable, RequestTooLarge))


@bench
async def test_a_body_with_a_key_is_written_alone_and_once(b: Bench) -> None:
    await b.write("m,t=0 v=0 0")
    b.backend.write_gate = asyncio.Event()
    first = asyncio.create_task(b.write("m,t=1 v=1 1"))
    await b.settle()
    keyed = [asyncio.create_task(b.write("m,t=2 v=2 2", key=key)) for key in ("a", "b", "a")]
    other = asyncio.create_task(b.write("m,t=3 v=3 3"))
    await b.settle()
    b.backend.write_gate.set()
    assert await asyncio.gather(first, *keyed, other) == [WriteReport()] * 5
    assert sorted(b.backend.keys) == ["", "", "", "a", "a", "b"]
    assert [row["v"] for row in b.rows("m")] == [0.0, 1.0, 2.0, 2.0, 3.0]


@bench
async def test_under_a_key_each_line_needs_a_time(b: Bench) -> None:
    for precision in Precision:
        with pytest.raises(BadRequest, match="'m' has no time"):
            await b.write("m v=1 1\nm v=2", key="a", precision=precision)
    assert b.backend.writes == []
    assert b.backend.alters == []
    assert await b.write("m v=1 1\nm v=2 2", key="a") == WriteReport()
    assert await b.write("m v=3") == WriteReport()
    assert b.rows("m")[-1]["time"] > 2


@bench
async def test_a_key_stays_with_its_body_when_a_table_goes(b: Bench) -> None:
    await b.write("m v=0 0")
    b.backend.fail_writes = [NoSuchTable("gone")]
    assert await b.write("m v=1 1", key="a") == WriteReport()
    assert b.backend.keys == ["", "a"]
