"""TSBS queries over HTTP with JSON from both sides: Runnel's SQL against InfluxDB's InfluxQL.

Driven by `benchmarks.run`. Both servers hold the same lines, written out to files once. Before the clock starts
both answers are decoded and compared value by value, so that a ratio is never between different questions.
VictoriaMetrics is not asked: MetricsQL cannot ask for rows.
"""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from benchmarks import client, lines
from benchmarks.accounting import median, percentile
from benchmarks.ingest import DATABASE, write_requests
from benchmarks.servers import InfluxDB, Runnel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.servers import Server

LINES = 1_000_000
LINES_QUICK = 200_000
BATCH_LINES = 10_000
CONNECTIONS = 4
WARM_ASKS = 3
ASKS = 20
ASKS_QUICK = 5
HOUR_SECONDS = 3600
WIDE_HOURS = 12

Value = str | int | float | bool | None
Row = tuple[Value, ...]


class AnswersDiffer(RuntimeError):
    """The two servers did not answer the same rows, so their times must not be compared."""


@dataclass(frozen=True, slots=True)
class Query:
    """One question in both languages. ``columns`` are compared, in this order; ``time`` in ns."""

    name: str
    influxql: str
    sql: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """One server's figures for one query: milliseconds of wall time and of server CPU, rows answered."""

    query: str
    server: str
    rows: int
    median_ms: float
    p99_ms: float
    cpu_ms: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def windows(line_count: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """(one hour), (twelve hours) and the end for groupby-orderby-limit, in epoch seconds, for that many lines.

    The windows begin at the same share of the data whatever their size; shorter data have a shorter wide window.
    """
    span = line_count // lines.HOSTS * lines.CPU_STEP_SECONDS
    wide = min(WIDE_HOURS * HOUR_SECONDS, max(_whole_hours(span // 2), HOUR_SECONDS))
    start = lines.START_SECONDS
    wide_from = start + _whole_hours(span * 18 // 100)
    hour_from = start + _whole_hours(span * 36 // 100)
    end = start + span - HOUR_SECONDS - lines.CPU_STEP_SECONDS
    return (hour_from, hour_from + HOUR_SECONDS), (wide_from, wide_from + wide), end


def _whole_hours(seconds: int) -> int:
    return seconds // HOUR_SECONDS * HOUR_SECONDS


def suite(line_count: int) -> list[Query]:
    """The TSBS "devops" queries that read one table, as TSBS words them for each language."""
    (hour_from, hour_to), (wide_from, wide_to), end = windows(line_count)
    hour = f"time >= '{_iso(hour_from)}' AND time < '{_iso(hour_to)}'"
    wide = f"time >= '{_iso(wide_from)}' AND time < '{_iso(wide_to)}'"
    rows = ("time", "hostname", *lines.FIELDS)
    return [
        Query(
            "single-groupby-1-1-1",
            f"SELECT max(usage_user) AS value FROM cpu WHERE hostname = 'host_9' AND {hour} GROUP BY time(1m)",
            "SELECT date_bin(INTERVAL '1 minute', time) AS time, max(usage_user) AS value FROM cpu "
            f"WHERE hostname = 'host_9' AND {hour} GROUP BY 1 ORDER BY 1",
            ("time", "value"),
        ),
        Query(
            "double-groupby-1",
            f"SELECT mean(usage_user) AS value FROM cpu WHERE {wide} GROUP BY time(1h), hostname",
            "SELECT date_bin(INTERVAL '1 hour', time) AS time, hostname, avg(usage_user) AS value FROM cpu "
            f"WHERE {wide} GROUP BY 1, 2 ORDER BY 1, 2",
            ("time", "hostname", "value"),
        ),
        Query(
            "high-cpu-all",
            f"SELECT * FROM cpu WHERE usage_user > 90.0 AND {wide}",
            f"SELECT * FROM cpu WHERE usage_user > 90.0 AND {wide}",
            rows,
        ),
        Query(
            "groupby-orderby-limit",
            f"SELECT max(usage_user) AS value FROM cpu WHERE time < '{_iso(end)}' "
            "GROUP BY time(1m) ORDER BY time DESC LIMIT 5",
            "SELECT date_bin(INTERVAL '1 minute', time) AS time, max(usage_user) AS value FROM cpu "
            f"WHERE time < '{_iso(end)}' GROUP BY 1 ORDER BY 1 DESC LIMIT 5",
            ("time", "value"),
        ),
        Query(
            "lastpoint",
            "SELECT * FROM cpu GROUP BY hostname ORDER BY time DESC LIMIT 1",
            "SELECT DISTINCT ON (hostname) * FROM cpu ORDER BY hostname, time DESC",
            rows,
        ),
    ]


def run(servers: Sequence[type[Server]], folder: Path, quick: bool) -> list[Asked]:
    """Load the servers among `Runnel` and `InfluxDB`, compare their answers, time each query on each."""
    line_count, asks = (LINES_QUICK, ASKS_QUICK) if quick else (LINES, ASKS)
    bodies = lines.bodies("cpu", line_count, BATCH_LINES)
    queries = suite(line_count)
    found: list[Asked] = []
    answers: dict[str, list[Row]] = {}
    for kind in servers:
        if kind not in (Runnel, InfluxDB):
            continue
        with kind(folder / f"queries-{kind.name}") as server:
            server.prepare(DATABASE)
            client.drive(server.port, write_requests(server, DATABASE, bodies, compressed=False), CONNECTIONS)
            server.settle()
            for query in queries:
                rows = _decode(server, query)
                compare(query.name, rows, answers.setdefault(query.name, rows))
                found.append(_time(server, query, len(rows), asks))
    return found


def _time(server: Server, query: Query, rows: int, asks: int) -> Asked:
    request = _request(server, query)
    seconds = []
    with client.Connection(server.port) as connection:
        for _ in range(WARM_ASKS):
            connection.ask(request).expect_success()
        before = server.cpu_seconds()
        for _ in range(asks):
            begun = time.perf_counter()
            connection.ask(request)
            seconds.append(time.perf_counter() - begun)
        cpu = server.cpu_seconds() - before
    return Asked(
        query=query.name,
        server=server.name,
        rows=rows,
        median_ms=median(seconds) * 1e3,
        p99_ms=percentile(sorted(seconds), 0.99) * 1e3,
        cpu_ms=cpu / asks * 1e3,
    )


def _request(server: Server, query: Query) -> client.Request:
    text = query.influxql if isinstance(server, InfluxDB) else query.sql
    return client.build("GET", server.query_path(DATABASE, text))


def _decode(server: Server, query: Query) -> list[Row]:
    with client.Connection(server.port) as connection:
        body = connection.ask(_request(server, query)).expect_success().body
    decode = influx_rows if isinstance(server, InfluxDB) else sql_rows
    return decode(json.loads(body), query.columns)


def influx_rows(answer: dict[str, Any], columns: Sequence[str]) -> list[Row]:
    """Rows of a /query answer (``epoch=ns``), sorted; tags of a series are columns like any other."""
    result = answer["results"][0]
    if "error" in result:
        raise client.RequestFailed(result["error"])
    rows = []
    for series in result.get("series", []):
        for values in series["values"]:
            row = {**series.get("tags", {}), **dict(zip(series["columns"], values, strict=True))}
            rows.append(tuple(row[column] for column in columns))
    return sorted(rows, key=_order)


def sql_rows(answer: list[dict[str, Any]], columns: Sequence[str]) -> list[Row]:
    """Rows of a /api/v3/query_sql answer (``format=json``), sorted; time as ns like InfluxDB's."""
    rows = []
    for found in answer:
        row = {**found, "time": nanoseconds(found["time"])}
        rows.append(tuple(row[column] for column in columns))
    return sorted(rows, key=_order)


def nanoseconds(text: str) -> int:
    """Epoch nanoseconds of an ISO time in UTC with up to nine decimals, as ``2025-11-20T00:00:00.5``."""
    whole, _, fraction = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole).replace(tzinfo=UTC).timestamp())
    return seconds * 1_000_000_000 + int(fraction.ljust(9, "0"))


def _order(row: Row) -> tuple[str, ...]:
    """Rows are identified by their whole numbers and texts; a mean may differ in its last digit."""
    return tuple(str(value) for value in row if not isinstance(value, float))


def compare(name: str, rows: Sequence[Row], reference: Sequence[Row]) -> None:
    """Raise `AnswersDiffer` unless both have the same rows (floats to within rounding)."""
    if len(rows) != len(reference):
        raise AnswersDiffer(f"{name}: {len(rows)} rows against {len(reference)}")
    for row, other in zip(rows, reference, strict=True):
        if not all(same(value, wanted) for value, wanted in zip(row, other, strict=True)):
            raise AnswersDiffer(f"{name}: {row} against {other}")


def same(value: Value, other: Value) -> bool:
    """Equal, or both numbers and equal to within rounding of a mean."""
    if isinstance(value, int | float) and isinstance(other, int | float):
        return math.isclose(value, other, rel_tol=1e-9)
    return value == other


def _iso(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
