"""What compaction costs and gives: `python -m benchmarks.compaction [PART ...]`, through a node, the same lines always.

tiny: 1,000 tiny writes a day, scattered over 30 days; a full scan before and after `runnel compact`, and of the same
rows in one file (goals: at most 64 files of a shard, at most 2 times). cost: TSBS's cpu lines in many files; the CPU
seconds of merging a million of them (0.6), bytes for each value then (0.40). latency: p99 of writes while merges go on
in the background, against none (2 times). files: planning an hour of a table of 20,000 files (150 ms).
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.accounting import cpu_seconds, percentile
from benchmarks.client import Connection, Request, build, drive
from benchmarks.engine import Snapshots, make_rows
from benchmarks.lines import VALUES_PER_LINE, bodies
from engine.engine import Engine, EngineLimits
from storage.schema import DataFile, PartitionSnapshot
from tests.harness.node import RunningNode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DAYS: Final = 30
WRITES_A_DAY: Final = 1_000
TINY_ROWS: Final = 10
HOSTS: Final = 50
DAY_NS: Final = 86_400 * 10**9
LINES: Final = 1_000_000
BODY_LINES: Final = 2_500
FILES: Final = 20_000
HOUR_NS: Final = 3_600 * 10**9
ROUNDS: Final = 7
PACE_SECONDS: Final = 0.1
WRITE: Final = "/api/v3/write_lp?db=db&precision=nanosecond"
QUIET: Final = {"RUNNEL_COMPACTION__CPU_SHARE": "none"}
SCAN: Final = "SELECT count(*) AS n, sum(v) AS v, max(u) AS u FROM {}"


def tiny() -> None:
    """Rows in random order of time, in so many writes that there are hundreds of files."""
    source = random.Random(5)
    environment = {**QUIET, "RUNNEL_LOG__SHARDS": "2", "RUNNEL_LOG__CHECKPOINT_OBJECTS": "200"}
    with tempfile.TemporaryDirectory() as folder, RunningNode(Path(folder) / "data", environment=environment) as node:
        requests = [build("POST", WRITE, _tiny_body(source)) for _ in range(DAYS * WRITES_A_DAY)]
        drive(node.port, requests, 4)
        node.request("POST", "/api/runnel/checkpoint")
        wanted = _ask(node, SCAN.format("t"))
        print(f"{len(requests)} writes of {TINY_ROWS} rows: {wanted[0]}")
        before = _best(node, SCAN.format("t"))
        print(f"{'before: files':32} {_files(node, 't'):8}  scan {before[0]:8.3f} CPU s {before[1]:8.3f} s")
        node.request("POST", "/api/runnel/compact")
        _expect(node, SCAN.format("t"), wanted)
        after = _best(node, SCAN.format("t"))
        print(
            f"{'after: files (goal 64 a shard)':32} {_files(node, 't'):8}  scan {after[0]:8.3f} CPU s {after[1]:8.3f} s"
        )
        node.write("big,host=h0 v=0i,u=0 1")
        _ask(node, "INSERT INTO big SELECT * FROM t")
        node.request("POST", "/api/runnel/checkpoint")
        node.request("POST", "/api/runnel/compact")
        big = _best(node, SCAN.format("big"))
        print(f"{'one big file':32} {_files(node, 'big'):8}  scan {big[0]:8.3f} CPU s {big[1]:8.3f} s")
        print(f"ratio: {after[0] / big[0]:.2f} in CPU, {after[1] / big[1]:.2f} in time (goal: at most 2)")


def _tiny_body(source: random.Random) -> bytes:
    rows = (
        f"t,host=h{source.randrange(HOSTS)} v={source.randrange(1000)}i,u={source.random():.4f} "
        f"{source.randrange(DAYS * DAY_NS)}\n"
        for _ in range(TINY_ROWS)
    )
    return "".join(rows).encode()


def cost() -> None:
    """Many small files of TSBS's table, merged by an operator's command."""
    environment = {**QUIET, "RUNNEL_LOG__SHARDS": "1", "RUNNEL_LOG__CHECKPOINT_BYTES": "4 MiB"}
    with tempfile.TemporaryDirectory() as folder, RunningNode(Path(folder) / "data", environment=environment) as node:
        drive(node.port, _cpu_requests(LINES), 4)
        node.request("POST", "/api/runnel/checkpoint")
        files, size = _files(node, "cpu"), _bytes(node, "cpu")
        assert node.process is not None
        before, begun = cpu_seconds(node.process.pid), time.perf_counter()
        node.request("POST", "/api/runnel/compact")
        spent, seconds = cpu_seconds(node.process.pid) - before, time.perf_counter() - begun
        values = LINES * VALUES_PER_LINE["cpu"]
        print(f"{files} files, {size / values:.3f} bytes a value; {_files(node, 'cpu')} after {seconds:.1f} s")
        print(f"{spent * 1e6 / LINES:.2f} CPU s per million lines (goal: 0.6)")
        print(f"{_bytes(node, 'cpu') / values:.3f} bytes a value (goal: 0.40)")
        _expect(node, "SELECT count(*) AS n FROM cpu", [{"n": LINES}])


def latency() -> None:
    """The same writes, at an even pace, into a store that has many files, with and without merging meanwhile."""
    found = {}
    for name, share in (("without", "none"), ("with", "0.25")):
        environment = {"RUNNEL_COMPACTION__CPU_SHARE": share, "RUNNEL_LOG__CHECKPOINT_BYTES": "1 MiB"}
        with (
            tempfile.TemporaryDirectory() as folder,
            RunningNode(Path(folder) / "data", environment=environment) as node,
        ):
            drive(node.port, _cpu_requests(LINES // 2), 4)
            seconds = sorted(_paced(node, _cpu_requests(LINES)))
            merges = json.loads(node.request("GET", "/api/runnel/status")[1])["compaction"]
            found[name] = percentile(seconds, 0.99)
            print(
                f"{name:8} p50 {percentile(seconds, 0.5) * 1e3:7.1f} ms  p99 {found[name] * 1e3:7.1f} ms  "
                f"{merges['merges']} merges of {merges['files_in']} files in {merges['cpu_seconds']:.1f} CPU s",
                flush=True,
            )
    print(f"ratio of p99: {found['with'] / found['without']:.2f} (goal: at most 2)")


def _paced(node: RunningNode, requests: Sequence[Request]) -> list[float]:
    """The seconds of each, begun ``PACE_SECONDS`` apart."""
    found = []
    with Connection(node.port) as connection:
        due = time.perf_counter()
        for request in requests:
            time.sleep(max(0.0, due - time.perf_counter()))
            begun = time.perf_counter()
            connection.ask(request).expect_success()
            found.append(time.perf_counter() - begun)
            due += PACE_SECONDS
    return found


def _cpu_requests(lines: int) -> list[Request]:
    return [build("POST", WRITE, body) for body in bodies("cpu", lines, BODY_LINES)]


async def files() -> None:
    """One hour of a table whose files have an hour each: those outside of it are never looked at."""
    with tempfile.TemporaryDirectory() as folder:
        source = Snapshots(Path(folder))
        rows = make_rows(range(360), 1)
        one = source.write("0.parquet", rows, 0)
        listed = [_moved(one, number) for number in range(FILES)]
        source.part = PartitionSnapshot(0, (1, 1, 1), tuple(listed), ())
        engine = Engine(folder, EngineLimits(512 * 2**20))
        statement = (
            "SELECT max(usage_user) AS m FROM cpu WHERE "
            "time >= '2016-01-01T00:00:00Z' AND time < '2016-01-01T01:00:00Z'"
        )
        best = 1e9
        for number in range(ROUNDS):
            source.part = PartitionSnapshot(0, (1, 1, number + 1), tuple(listed), ())  # no plan is kept of before
            begun = time.perf_counter()
            stream = await engine.query(statement, database="db", revision=1, tables=[source.table], source=source)
            _ = [batch async for batch in stream]
            best = min(best, time.perf_counter() - begun)
        print(f"{FILES} files, an hour of them planned and read: {best * 1e3:.1f} ms (goal: 150 to plan it)")
        await engine.close()


def _moved(file: DataFile, number: int) -> DataFile:
    shift, rows = number * HOUR_NS, number * file.rows
    return DataFile(
        f"{number}.parquet", 1, 0, rows, rows + file.rows - 1, rows, rows + file.rows - 1,
        file.time_low + shift, file.time_high + shift, file.rows, file.bytes, 1,
    )  # fmt: skip


def _ask(node: RunningNode, statement: str) -> Any:
    body = json.dumps({"db": "db", "q": statement}).encode()
    status, answer = node.request("POST", "/api/v3/query_sql", body, {"Content-Type": "application/json"})
    if status != 200:
        raise RuntimeError(f"{statement[:80]}: {status} {answer.decode()[:300]}")
    return json.loads(answer)


def _expect(node: RunningNode, statement: str, wanted: Any) -> None:
    found = _ask(node, statement)
    if found != wanted:
        raise RuntimeError(f"{statement}: {found} where {wanted} must be")


def _best(node: RunningNode, statement: str) -> tuple[float, float]:
    """Least CPU seconds and seconds of several rounds of ten."""
    assert node.process is not None
    best = (1e9, 1e9)
    for _ in range(ROUNDS):
        cpu, begun = cpu_seconds(node.process.pid), time.perf_counter()
        for _ in range(10):
            _ask(node, statement)
        spent, seconds = cpu_seconds(node.process.pid) - cpu, time.perf_counter() - begun
        best = min(best[0], spent / 10), min(best[1], seconds / 10)
    return best


def _files(node: RunningNode, table: str) -> int:
    found = _ask(node, f"SELECT count(*) AS n FROM system.parquet_files WHERE table_name = '{table}'")
    return int(found[0]["n"])


def _bytes(node: RunningNode, table: str) -> int:
    found = _ask(node, f"SELECT sum(size_bytes) AS n FROM system.parquet_files WHERE table_name = '{table}'")
    return int(found[0]["n"])


PARTS: Final[dict[str, Callable[[], Any]]] = {"tiny": tiny, "cost": cost, "latency": latency, "files": files}


def main(arguments: Sequence[str]) -> None:
    """The parts that are named, or all."""
    for name in arguments or PARTS:
        print(f"== {name}", flush=True)
        result = PARTS[name]()
        if result is not None:
            asyncio.run(result)


if __name__ == "__main__":
    main(sys.argv[1:])
