"""What tests of real Ray workers share: settings, tables, statements, and doing something while one runs."""

from __future__ import annotations

import asyncio
import atexit
import functools
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from engine.batches import BatchSource
from engine.distribution import cut_frame, planning_for
from engine.ladder import Rung
from engine.session import new_context, set_option
from engine.staged import StagedSource
from engine.tasks import TaskContext
from nodes.rayhead import write_token
from nodes.settings_model import DataSettings, Settings
from nodes.settings_ray import RaySettings
from tests.harness.stages import POOL_BYTES
from tests.harness.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psutil
    from datafusion import SessionContext

    from engine.stages import Stages
    from engine.workers import RayWorkers

ROWS: Final = 12_000
FILES: Final = 4
START_SECONDS: Final = 150.0
SLOW: Final = "SELECT count(*) AS n, sum(a.v - b.v) AS s FROM t AS a JOIN t AS b ON a.v < b.v AND a.v % 7 <> {}"
"""A second or more of work for the workers, in several tasks."""
ENDLESS: Final = (
    "SELECT count(*) AS n FROM t AS a JOIN t AS b ON a.v < b.v JOIN t AS c ON b.v < c.v WHERE a.v + c.v = -1"
)
QUICK: Final = "SELECT k, count(*) AS n, sum(v) AS s FROM t GROUP BY k ORDER BY k"


@functools.cache
def token_file() -> Path:
    """One for all clusters that this process ever joins: Ray reads it once."""
    folder = tempfile.mkdtemp(prefix="runnel-test-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_token(Path(folder) / "token")
    return Path(folder) / "token"


def make_settings(folder: Path, address: str = "local", **ray: Any) -> Settings:
    chosen: dict[str, Any] = {"workers": 2, "worker_memory": 2**28, "object_memory": 100 * 2**20}
    chosen["token_file"] = str(token_file())
    return Settings(data=DataSettings(dir=str(folder)), ray=RaySettings(address=address, **(chosen | ray)))


def make_tables(folder: Path) -> SessionContext:
    """`t` in several files, `u` in one."""
    context = new_context(POOL_BYTES, None, 3, 8_192, 0)
    set_option(context, "optimizer.repartition_file_min_size", "1")
    keys = [f"key number {v % 7}" for v in range(ROWS)]
    (folder / "t").mkdir()
    for number in range(FILES):
        part = slice(number * ROWS // FILES, (number + 1) * ROWS // FILES)
        pq.write_table(pa.table({"k": keys[part], "v": range(ROWS)[part]}), folder / "t" / f"{number}.parquet")
    pq.write_table(pa.table({"k": [f"key number {n}" for n in range(5)], "n": range(5)}), folder / "u.parquet")
    context.register_parquet("t", str(folder / "t"))
    context.register_parquet("u", str(folder / "u.parquet"))
    return context


def started(workers: RayWorkers, count: int = 2) -> None:
    eventually(lambda: workers.slots() == count, "the workers are there", START_SECONDS)


def stages_of(context: SessionContext, statement: str, rung: Rung = Rung.FULL_SHUFFLE) -> Stages:
    with planning_for(context, rung):
        frame = context.sql(statement)
    return cut_frame(context, frame)


def source_of(
    context: SessionContext, workers: RayWorkers, statement: str, rung: Rung = Rung.FULL_SHUFFLE
) -> StagedSource:
    frame = context.sql(statement)
    stages = stages_of(context, statement, rung)

    def local() -> BatchSource:
        return BatchSource(frame.execute_stream())

    return StagedSource(stages, workers, TaskContext(context), frame.schema(), local, POOL_BYTES)


async def read(source: StagedSource) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    while (batch := await source.next()) is not None:
        rows += batch.to_pylist()
    return rows


def is_as_in_one_process(context: SessionContext, workers: RayWorkers, statement: str = QUICK) -> None:
    """The statement's rows, made by the workers and not in this process."""
    source = source_of(context, workers, statement)
    assert asyncio.run(read(source)) == context.sql(statement).to_pylist()
    assert source.fell_back == ""


def while_it_runs(
    workers: RayWorkers, act: Callable[[], None], processes: Sequence[psutil.Process]
) -> threading.Thread:
    """In another thread: act when tasks of a statement are under way and one of the workers' ``processes`` computes."""

    def is_busy() -> bool:
        session = workers._session
        return session is not None and any(run.pending and run._refs for run in list(session.running))

    def main() -> None:
        eventually(is_busy, "a statement runs on the workers")
        eventually(lambda: any(process.cpu_percent(0.05) > 20 for process in processes), "a worker computes")
        act()

    thread = threading.Thread(target=main)
    thread.start()
    return thread
