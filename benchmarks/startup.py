"""How soon Runnel is ready, what it holds in memory, and how fast it comes back after a crash.

Driven by `benchmarks.run`. Recovery is measured on a Log that no Checkpoint has shortened: written with
checkpoints put off by settings, killed with SIGKILL, started again; the rows are counted afterwards. The rate is
for the replay alone, so the time that an empty folder takes to be ready is subtracted.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from benchmarks import client, lines
from benchmarks.accounting import median
from benchmarks.ingest import DATABASE, write_requests
from benchmarks.servers import Runnel

if TYPE_CHECKING:
    from pathlib import Path

STARTS = 5
STARTS_QUICK = 2
IDLE_SECONDS = 2.0
"""How long a ready server is left alone before its memory is read."""
LARGE_LINES = 8_000
"""Lines of `cpu` that make an object of about 1 MB."""
LARGE_OBJECTS = 600
SMALL_OBJECTS = 20_000
RECOVERIES = 3
"""Times the same Log is replayed; medians count. Each ends in a crash, so the next one finds the same rows."""
QUICK_DIVISOR = 20
REPLAY_SECONDS_MIN = 0.01
"""A shorter difference between two starts is noise; rates are not computed from less."""
NO_CHECKPOINTS = {
    "RUNNEL_LOG__CHECKPOINT_BYTES": "64 GiB",
    "RUNNEL_LOG__CHECKPOINT_OBJECTS": "10000000",
    "RUNNEL_LOG__CHECKPOINT_AGE": "100 h",
    "RUNNEL_LOG__SHARDS": "1",  # one shard may replay all of it into memory, without a checkpoint on its way
    "RUNNEL_MEMORY__BUDGET": "12 GiB",
}
ONE_LINE = b"first,tag=a value=1i 1763596800000000000\n"


class RowsLost(RuntimeError):
    """After recovery the server does not have exactly the rows that it had acknowledged."""


@dataclass(frozen=True, slots=True)
class Started:
    """Ready on an empty folder (median seconds), and resident bytes at three moments."""

    ready_seconds: float
    ready_cpu_seconds: float
    rss_ready_bytes: int
    rss_used_bytes: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Recovered:
    """One recovery: the Log that was replayed, and how long that took beyond a start on an empty folder."""

    name: str
    objects: int
    log_bytes: int
    rows: int
    ready_seconds: float
    replay_seconds: float

    @property
    def megabytes_per_second(self) -> float:
        return self.log_bytes / 1e6 / self.replay_seconds

    @property
    def objects_per_second(self) -> float:
        return self.objects / self.replay_seconds

    def as_json(self) -> dict[str, Any]:
        rates = {"megabytes_per_second": self.megabytes_per_second, "objects_per_second": self.objects_per_second}
        return {**asdict(self), **rates}


def start(folder: Path, quick: bool) -> Started:
    """Start on empty folders; the first start warms the caches and is not counted."""
    seconds, cpu, ready_bytes, used_bytes = [], [], [], []
    for number in range((STARTS_QUICK if quick else STARTS) + 1):
        begun = time.perf_counter()
        with Runnel(folder / f"start-{number}") as server:
            took = time.perf_counter() - begun
            if number == 0:
                _use(server)
                continue
            seconds.append(took)
            cpu.append(server.cpu_seconds())
            time.sleep(IDLE_SECONDS)
            ready_bytes.append(server.memory().now_bytes)
            _use(server)
            used_bytes.append(server.memory().now_bytes)
    return Started(median(seconds), median(cpu), int(median(ready_bytes)), int(median(used_bytes)))


def _use(server: Runnel) -> None:
    """One write and one query."""
    client.drive(server.port, write_requests(server, DATABASE, [ONE_LINE], compressed=False), 1)
    if server.rows(DATABASE, "first") != 1:
        raise RowsLost("one row was written and acknowledged, and it is not there")


def recover(folder: Path, empty_seconds: float, quick: bool) -> list[Recovered]:
    """Both recoveries; ``empty_seconds`` is what `start` measured."""
    divisor = QUICK_DIVISOR if quick else 1
    large, small = LARGE_OBJECTS // divisor, SMALL_OBJECTS // divisor
    return [
        _recover("1 MB objects", folder / "large", large * LARGE_LINES, LARGE_LINES, empty_seconds),
        _recover("small objects", folder / "small", small, 1, empty_seconds),
    ]


def _recover(name: str, folder: Path, line_count: int, batch: int, empty_seconds: float) -> Recovered:
    """One connection, so that no two bodies share an object of the Log."""
    server = Runnel(folder, NO_CHECKPOINTS)
    bodies = lines.bodies("cpu", line_count, batch)
    with server.crashing():
        client.drive(server.port, write_requests(server, DATABASE, bodies, compressed=False), 1)
    objects, log_bytes = longest_log(server.data)
    seconds, rows = [], 0
    for _ in range(RECOVERIES):
        begun = time.perf_counter()
        with server.crashing():
            seconds.append(time.perf_counter() - begun)
            rows = server.rows(DATABASE, "cpu")
        if rows != line_count:
            raise RowsLost(f"{line_count} rows were acknowledged before the crash, {rows} are there after it")
    replay_seconds = max(median(seconds) - empty_seconds, REPLAY_SECONDS_MIN)
    return Recovered(name, objects, log_bytes, rows, median(seconds), replay_seconds)


def longest_log(data: Path) -> tuple[int, int]:
    """Objects and bytes of the Log with the most bytes below a data folder (``store/logs/<log>/<sequence>``)."""
    found: list[tuple[int, int]] = []
    for log in (data / "store/logs").iterdir():
        sizes = [path.stat().st_size for path in log.iterdir()]
        found.append((sum(sizes), len(sizes)))
    size, count = max(found)
    return count, size
