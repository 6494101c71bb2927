"""Ingest loads: the same bodies, from the same client, into each server, and what that cost it.

Driven by `benchmarks.run`. Each load starts each server anew in an empty folder, writes one body into another
database so that nothing lazy is left, then runs the clock. CPU is read twice: at the last acknowledgement, and
when the rows are in files at rest (for Runnel after a forced checkpoint, which is Parquet written).
"""

from __future__ import annotations

import gzip
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from benchmarks import client, lines
from benchmarks.accounting import median, per_million, percentile

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from benchmarks.servers import Server

DATABASE = "b"
WARM_DATABASE = "warm"
WARM_LINES = 500
GZIP_LEVEL = 6
QUICK_DIVISOR = 10
TABLES = {"cpu": "cpu", "cpuf": "cpu", "narrow": "temp"}


class RowsMissing(RuntimeError):
    """A server does not have the rows that it has acknowledged."""


@dataclass(frozen=True, slots=True)
class Load:
    """One way of writing: ``lines`` of ``kind`` in bodies of ``batch`` lines over ``connections`` connections."""

    name: str
    kind: str
    lines: int
    batch: int
    connections: int
    compressed: bool = False
    disk: bool = False
    rounds: int = 1

    def scaled(self, divisor: int) -> Load:
        """The same load with fewer lines, at least one body a connection."""
        count = max(self.lines // divisor, self.batch * self.connections)
        return replace(self, lines=count)


LOADS = (
    Load("cpu", "cpu", 1_000_000, 10_000, 4, disk=True, rounds=3),
    Load("cpu gzip", "cpu", 1_000_000, 10_000, 4, compressed=True),
    Load("doubles", "cpuf", 500_000, 10_000, 4, disk=True),
    Load("narrow", "narrow", 2_000_000, 10_000, 4, disk=True),
    Load("50-line bodies", "cpu", 300_000, 50, 32),
    Load("1-line bodies", "cpu", 50_000, 1, 32),
)


@dataclass(frozen=True, slots=True)
class Ingested:
    """One server's figures for one load. CPU is seconds per million lines; disk is None where it is not taken."""

    load: str
    server: str
    lines: int
    lines_per_second: float
    cpu_acknowledged: float
    cpu_at_rest: float
    p50_ms: float
    p99_ms: float
    rss_bytes: int
    rss_peak_bytes: int
    disk_bytes_per_value: float | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def loads(quick: bool) -> list[Load]:
    """The loads of a run; ``quick`` has a tenth of the lines."""
    return [load.scaled(QUICK_DIVISOR) if quick else load for load in LOADS]


def run(load: Load, servers: Sequence[type[Server]], folder: Path, rounds: int | None = None) -> list[Ingested]:
    """Run ``load`` against each server in turn, ``rounds`` (else its own number of) times over; medians per server.

    Rounds go around the servers, so that a slow minute of the machine falls on all of them.
    """
    bodies = _bodies(load)
    found: dict[str, list[Ingested]] = {server.name: [] for server in servers}
    for number in range(rounds or load.rounds):
        for server in servers:
            place = folder / f"{load.name.replace(' ', '-')}-{server.name}-{number}"
            found[server.name].append(_measure(load, bodies, server(place)))
    return [middle(each) for each in found.values()]


def middle(rounds: Sequence[Ingested]) -> Ingested:
    """One row out of several rounds of the same load and server: the median of each figure."""

    def of(values: Iterable[float]) -> float:
        return median(values)

    disks = [each.disk_bytes_per_value for each in rounds if each.disk_bytes_per_value is not None]
    return Ingested(
        load=rounds[0].load,
        server=rounds[0].server,
        lines=rounds[0].lines,
        lines_per_second=of(each.lines_per_second for each in rounds),
        cpu_acknowledged=of(each.cpu_acknowledged for each in rounds),
        cpu_at_rest=of(each.cpu_at_rest for each in rounds),
        p50_ms=of(each.p50_ms for each in rounds),
        p99_ms=of(each.p99_ms for each in rounds),
        rss_bytes=int(of(each.rss_bytes for each in rounds)),
        rss_peak_bytes=int(of(each.rss_peak_bytes for each in rounds)),
        disk_bytes_per_value=of(disks) if disks else None,
    )


def _warm_up(load: Load) -> list[bytes]:
    """One small body: it must not weigh in what VictoriaMetrics, which has one database only, has on disk."""
    return _bodies(replace(load, lines=min(load.batch, WARM_LINES)))


def _bodies(load: Load) -> list[bytes]:
    plain = lines.bodies(load.kind, load.lines, load.batch)
    return [gzip.compress(body, GZIP_LEVEL, mtime=0) for body in plain] if load.compressed else plain


def write_requests(server: Server, database: str, bodies: Iterable[bytes], compressed: bool) -> list[client.Request]:
    """The bodies as requests to the server's write endpoint, ready to go out."""
    path = server.write_path.format(database=database)
    headers = {"Content-Type": "text/plain; charset=utf-8"}
    if compressed:
        headers["Content-Encoding"] = "gzip"
    return [client.build("POST", path, body, headers) for body in bodies]


def _measure(load: Load, bodies: Sequence[bytes], server: Server) -> Ingested:
    with server:
        for database in (WARM_DATABASE, DATABASE):
            server.prepare(database)
        client.drive(server.port, write_requests(server, WARM_DATABASE, _warm_up(load), load.compressed), 1)
        requests = write_requests(server, DATABASE, bodies, load.compressed)
        before = server.cpu_seconds()
        driven = client.drive(server.port, requests, load.connections)
        acknowledged = server.cpu_seconds() - before
        server.settle()
        at_rest = server.cpu_seconds() - before
        memory = server.memory()
        disk = _disk_per_value(load, server) if load.disk else None
        _check_rows(load, server)
    latencies = sorted(driven.latency_seconds)
    return Ingested(
        load=load.name,
        server=server.name,
        lines=load.lines,
        lines_per_second=load.lines / driven.wall_seconds,
        cpu_acknowledged=per_million(acknowledged, load.lines),
        cpu_at_rest=per_million(at_rest, load.lines),
        p50_ms=percentile(latencies, 0.50) * 1e3,
        p99_ms=percentile(latencies, 0.99) * 1e3,
        rss_bytes=memory.now_bytes,
        rss_peak_bytes=memory.peak_bytes,
        disk_bytes_per_value=disk,
    )


def _check_rows(load: Load, server: Server) -> None:
    """Raise `RowsMissing` unless every acknowledged row is there: speed by loss would be no speed."""
    rows = server.rows(DATABASE, TABLES[load.kind])
    if rows is not None and rows != load.lines:
        raise RowsMissing(f"{server.name} acknowledged {load.lines} lines of {load.name} and has {rows} rows")


def _disk_per_value(load: Load, server: Server) -> float:
    return server.disk_bytes(DATABASE, TABLES[load.kind]) / (load.lines * lines.VALUES_PER_LINE[load.kind])
