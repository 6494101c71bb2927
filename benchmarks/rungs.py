"""What Ray costs and what it brings: `python -m benchmarks.rungs`. Ray is started in this machine.

First small statements, whole in this process and in stages on two workers: the difference is what stages and Ray cost.
Then a scan of some millions of rows over 1, 2 and 4 workers: its CPU seconds should be the same, its time should fall
where cores are free. Times are the best of several, in ms.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from engine.batches import BatchSource
from engine.distribution import cut_frame, planning_for
from engine.ladder import Rung
from engine.session import new_context, set_option
from engine.staged import StagedSource
from engine.tasks import TaskContext
from nodes.rayhead import new_workers
from nodes.settings_model import DataSettings, Settings
from nodes.settings_ray import RaySettings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from datafusion import SessionContext

    from engine.ladder import Workers

ROUNDS: Final = 15
SCANS: Final = 10
WARM_SCANS: Final = 12
"""A worker's first ones read footers and touch memory for the first time: with three, the ten after them cost 4 workers
a third more than the ten after those."""
POOL_BYTES: Final = 2**29
SMALL_ROWS: Final = 1_000
LARGE_ROWS: Final = 12_000_000
FILES: Final = 16
START_SECONDS: Final = 180.0
OVERHEAD_MS_MAX: Final = 20.0
SMALL: Final = {
    "group by": "SELECT k, count(*), sum(v) FROM small GROUP BY k ORDER BY k",
    "join": "SELECT a.k, count(*) FROM small AS a JOIN small AS b ON a.v = b.v GROUP BY a.k ORDER BY a.k",
    "top": "SELECT * FROM small ORDER BY f DESC LIMIT 5",
}
SCAN: Final = "SELECT k, count(*), sum(v), avg(f), max(f), stddev(f) FROM large WHERE v % 10 < 9 GROUP BY k ORDER BY k"


def write_tables(folder: Path) -> None:
    random = np.random.default_rng(7)
    for name, rows in (("small", SMALL_ROWS), ("large", LARGE_ROWS)):
        (folder / name).mkdir()
        for number in range(FILES):
            count = rows // FILES
            table = pa.table(
                {
                    "k": pa.array([f"key {v}" for v in range(50)]).take(pa.array(random.integers(0, 50, count))),
                    "v": random.integers(0, rows, count),
                    "f": random.normal(0, 1, count),
                }
            )
            pq.write_table(table, folder / name / f"{number:02}.parquet", compression="zstd")


def make_context(folder: Path, partitions: int) -> SessionContext:
    context = new_context(POOL_BYTES, None, partitions, 8_192, 0)
    set_option(context, "optimizer.repartition_file_min_size", "1")
    for table in folder.iterdir():
        context.register_parquet(table.name, str(table))
    return context


async def read(source: StagedSource | BatchSource) -> int:
    rows = 0
    while (batch := await source.next()) is not None:
        rows += batch.num_rows
    return rows


async def best(work: Callable[[], Coroutine[None, None, int]], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        await work()
        found.append(time.perf_counter() - began)
    return min(found) * 1e3


def staged(context: SessionContext, workers: Workers, tasks: TaskContext, rung: Rung, statement: str) -> StagedSource:
    """From the statement's text on, as the engine does it: both plans are made."""
    frame = context.sql(statement)
    with planning_for(context, rung):
        reframed = context.sql(statement)

    def local() -> BatchSource:
        raise AssertionError("the stages must run on the workers")

    return StagedSource(cut_frame(context, reframed), workers, tasks, frame.schema(), local, POOL_BYTES)


async def ready(workers: Workers, count: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while workers.slots() < count:
        if time.monotonic() > deadline:
            raise SystemExit(f"no workers: {workers.reason()}")
        await asyncio.sleep(0.1)


async def measure_small(context: SessionContext, workers: Workers) -> float:
    """The largest overhead, in ms."""
    tasks = TaskContext(context)
    worst = 0.0
    for name, statement in SMALL.items():
        alone = await best(lambda text=statement: read(BatchSource(context.sql(text).execute_stream())), ROUNDS)  # type: ignore[misc]
        for rung in Rung.PARTIAL_FINAL, Rung.FULL_SHUFFLE:
            took = await best(lambda r=rung, t=statement: read(staged(context, workers, tasks, r, t)), ROUNDS)  # type: ignore[misc]
            worst = max(worst, took - alone)
            print(f"{name:10} {rung:14} {took:7.1f} ms   in this process {alone:7.1f} ms   more {took - alone:6.1f} ms")
    return worst


def cpu_seconds() -> float:
    """Of this process and of all workers."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    workers = [p for p in processes if p.pid == os.getpid() or "QueryWorker" in " ".join(p.cmdline())]
    return sum(sum(process.cpu_times()[:2]) for process in workers)


async def measure_scan(context: SessionContext, workers: Workers, count: int) -> None:
    tasks = TaskContext(context)
    for _ in range(WARM_SCANS):
        await read(staged(context, workers, tasks, Rung.PARTIAL_FINAL, SCAN))
    before = cpu_seconds()
    took = await best(lambda: read(staged(context, workers, tasks, Rung.PARTIAL_FINAL, SCAN)), SCANS)
    print(f"scan over {count} workers: {took:7.1f} ms, {(cpu_seconds() - before) / SCANS:.3f} CPU s")


async def with_workers(folder: Path, home: Path, count: int) -> float:
    ray = RaySettings(address="local", workers=count, object_memory=200 * 2**20)
    workers = new_workers(Settings(data=DataSettings(dir=str(home)), ray=ray))
    assert workers is not None
    await ready(workers, count)
    try:
        worst = await measure_small(make_context(folder, 2), workers) if count == 2 else 0.0
        await measure_scan(make_context(folder, max(2, count)), workers, count)
        return worst
    finally:
        await workers.aclose()


async def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder, home = Path(name) / "tables", Path(name) / "home"
        folder.mkdir()
        home.mkdir()
        write_tables(folder)
        os.chdir(home)
        worst = max([await with_workers(folder, home, count) for count in (2, 1, 4)])
    print(f"stages and Ray cost {worst:.1f} ms at most; the goal is {OVERHEAD_MS_MAX:.0f} ms")
    return 0 if worst <= OVERHEAD_MS_MAX else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
