"""What rewritten, deleted and very many rows cost queries: `python -m benchmarks.scale [PART ...]`.

rewritten: aggregates over 5 M rows of which a tenth was written again, whole or one field of it, against the same
without that (goal: at most 4 times for all whole rows). deleted: 1 M rows of 10 M deleted by a field's value and by a
tag, and counted at once, through a node. scan: a file of 100 MB linked a hundred times, as a hundred partitions, read
whole in a process with 1.5 GB (as root, in a memory cgroup: it would be killed); scan-whole: a thousand times, 100 GB,
only when it is named; scan-busy: the same with a million rows in memory. tiny: 10,000 tables of one row each in one
shard, checkpointed (goal: 2 s of CPU), replayed, asked and merged. Times are in seconds, of CPU where they say so.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.engine import FIELDS, HOSTS, TAGS, Snapshots, make_rows
from engine.engine import Engine, EngineLimits
from examples.runnel_client import RunnelClient
from storage.budget import MemoryBudget
from storage.bundlemerge import bundle_job, changes_of, merge_bundles
from storage.bundleplan import bundles_of
from storage.log import Identity
from storage.objects import open_store
from storage.schema import DataFile, PartitionSnapshot, TableSnapshot, TailBatch
from storage.shard import Append, Shard, ShardLimits
from tests.harness.node import RunningNode
from tests.harness.tables import make_rows as one_row
from tests.harness.tables import make_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from storage.schema import Table

ROWS: Final = 5_000_000
FILES: Final = 5
REWRITTEN_SHARE: Final = 10
ROUNDS: Final = 5
AGGREGATE: Final = "SELECT count(*), avg(usage_user), max(usage_system), min(usage_idle) FROM cpu"
CONDITIONS: Final = {
    "a fifth": " WHERE time >= '2016-01-03T00:00:00' AND time < '2016-01-04T03:46:40'",
    "one host": " WHERE hostname = 'hostname_17'",
}
PATCHED: Final = ("time", *TAGS, "usage_user")
TIMES_MAX: Final = 4.0
DELETED_ROWS: Final = 10_000_000
STEP_ROWS: Final = 1_000_000
LINKS: Final = 100
LINKS_WHOLE: Final = 1_000
TAIL_ROWS: Final = 1_000_000
LINK_BYTES: Final = 100_000_000
SCAN_BYTES: Final = 1_500_000_000
SCAN_POOL_BYTES: Final = 600_000_000
SCAN_SECONDS_MAX: Final = 3_600.0
TINY_TABLES: Final = 10_000
TINY_CHECKPOINTS: Final = 3
PROBE_TIMES: Final = 4_000
EVERY_FIELD: Final = f"SELECT count(*), {', '.join(f'avg(usage_{name})' for name in FIELDS)} FROM cpu"
BY_HOST: Final = "SELECT hostname, avg(usage_user) AS a FROM cpu GROUP BY hostname ORDER BY a LIMIT 3"
CGROUPS: Final = (("memory", "memory.limit_in_bytes"), ("", "memory.max"))


async def rewritten() -> None:
    """Best CPU seconds and times of aggregates over everything, a part of the time, and one host."""
    with tempfile.TemporaryDirectory() as folder:
        source = Snapshots(Path(folder))
        times = ROWS // HOSTS
        share = times // FILES
        old = [
            source.write(f"{n}.parquet", make_rows(range(n * share, (n + 1) * share), n), n * share * HOSTS)
            for n in range(FILES)
        ]
        again = make_rows(range(0, times, REWRITTEN_SHARE), 99)
        shapes = {
            "as written once": old,
            "a tenth written again": [*old, source.write("new.parquet", again, ROWS)],
            "a field of a tenth again": [*old, source.write("one.parquet", again.select(PATCHED), ROWS)],
        }
        engine = Engine(folder, EngineLimits(2**30))
        once: dict[str, tuple[float, float]] = {}
        for name, files in shapes.items():
            source.part = PartitionSnapshot(0, (1, 1, source.part.position[2] + 1), tuple(files), ())
            for what, condition in {"all": "", **CONDITIONS}.items():
                cpu, seconds = await _best(engine, source, AGGREGATE + condition)
                first = once.setdefault(what, (cpu, seconds))
                ratios = f"{cpu / first[0]:6.1f} times in CPU {seconds / first[1]:6.1f} in time"
                print(f"{name:26} {what:12} {cpu:8.3f} CPU s {seconds:8.3f} s {ratios}", flush=True)
        print(f"goal: all, a tenth written again: at most {TIMES_MAX} times")
        await engine.close()


async def _best(engine: Engine, source: Snapshots | Links, statement: str) -> tuple[float, float]:
    best = (1e9, 1e9)
    for _ in range(ROUNDS):
        cpu, begun = time.process_time(), time.perf_counter()
        await _ask(engine, source, statement)
        best = min(best[0], time.process_time() - cpu), min(best[1], time.perf_counter() - begun)
    return best


async def _ask(engine: Engine, source: Snapshots | Links, statement: str) -> list[dict[str, Any]]:
    stream = await engine.query(
        statement, database="db", revision=1, tables=[source.table], source=source, timeout_seconds=SCAN_SECONDS_MAX
    )
    return [row async for batch in stream for row in batch.to_pylist()]


async def deleted() -> None:
    """Through HTTP and gRPC; every count is compared with what must be."""
    flags = ("--grpc", "127.0.0.1:0")
    with tempfile.TemporaryDirectory() as folder, RunningNode(Path(folder) / "data", *flags) as node:
        node.write("t,host=h0 v=0i,u=0.5 1")
        for first in range(1, DELETED_ROWS, STEP_ROWS):
            _sql(
                node,
                "INSERT INTO t (time, host, v, u) SELECT arrow_cast(value * 1000000, 'Timestamp(Nanosecond, None)'),"
                f" 'h' || (value % 100), value, value * 0.5 FROM generate_series({first}, {first + STEP_ROWS - 1})",
            )
        left = DELETED_ROWS  # the first row has the key of one of them
        _timed(node, "count before", "SELECT count(*) AS n FROM t", left)
        for what, condition, rows in (
            ("by a field", "v % 10 = 3 AND v > 0", DELETED_ROWS // 10),
            ("by tags", "host IN ('h1', 'h11', 'h21', 'h31', 'h41', 'h51', 'h61', 'h71', 'h81', 'h91')", STEP_ROWS),
        ):
            _timed(node, f"delete {rows} rows {what}", f"DELETE FROM t WHERE {condition}", rows)
            left -= rows
            _timed(node, "count at once", "SELECT count(*) AS n FROM t", left)
            with RunnelClient(node.grpc_address) as client:
                (found,) = client.query("db", "SELECT count(*) AS n FROM t").to_pylist()
            print(f"{'count over gRPC':40} {'' if found['n'] == left else f'WRONG: {found}'}", flush=True)
            _timed(node, "count again", "SELECT count(*) AS n FROM t", left)
        node.request("POST", "/api/runnel/checkpoint")
        _timed(node, "count after a checkpoint", "SELECT count(*) AS n FROM t", left)
        begun = time.perf_counter()
        node.request("POST", "/api/runnel/compact")
        print(f"{'runnel compact':40} {time.perf_counter() - begun:8.2f} s")
        _timed(node, "count after it", "SELECT count(*) AS n FROM t", left)


def _sql(node: RunningNode, statement: str) -> int:
    body = json.dumps({"db": "db", "q": statement}).encode()
    status, answer = node.request("POST", "/api/v3/query_sql", body, {"Content-Type": "application/json"})
    if status != 200:
        raise RuntimeError(f"{statement[:80]}: {status} {answer.decode()[:300]}")
    ((_, value),) = json.loads(answer)[0].items()
    return int(value)


def _timed(node: RunningNode, what: str, statement: str, wanted: int) -> None:
    assert node.process is not None
    process = psutil.Process(node.process.pid)
    cpu, begun = sum(process.cpu_times()[:2]), time.perf_counter()
    found = _sql(node, statement)
    seconds, spent = time.perf_counter() - begun, sum(process.cpu_times()[:2]) - cpu
    verdict = "" if found == wanted else f"  WRONG: {found} where {wanted} must be"
    print(f"{what:40} {seconds:8.2f} s {spent:8.2f} CPU s{verdict}", flush=True)


class Links(Snapshots):
    """One file under many names, each a partition of its own: no two are merged, as without a key. And a tail."""

    def __init__(self, folder: Path, files: Sequence[DataFile], tail: tuple[TailBatch, ...]) -> None:
        super().__init__(folder)
        self.files = files
        self.tail = tail

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        parts = [PartitionSnapshot(i, (1, 1, 1), (file,), ()) for i, file in enumerate(self.files)]
        parts.append(PartitionSnapshot(len(parts), (1, 1, 1), (), self.tail))
        return [TableSnapshot(self.table, tuple(parts)) for _ in tables]


def _busy_rows(times: int) -> pa.RecordBatch:
    """Rows whose fields take any value at any time, so that their bytes say how much there is to read."""
    rows = make_rows(range(times), 1)
    random = np.random.default_rng(1)
    for name in FIELDS:
        place = rows.schema.get_field_index(f"usage_{name}")
        rows = rows.set_column(place, f"usage_{name}", pa.array(random.integers(0, 101, rows.num_rows)))
    return rows


async def scan(links: int = LINKS, tail_times: int = 0) -> None:
    """In a process of its own, which must not have more memory."""
    with tempfile.TemporaryDirectory() as folder:
        source = Snapshots(Path(folder))
        size = source.write("probe.parquet", _busy_rows(PROBE_TIMES), 0).bytes
        file = source.write("0.parquet", _busy_rows(PROBE_TIMES * LINK_BYTES // size), 0)
        for number in range(1, links):
            os.link(Path(folder) / "0.parquet", Path(folder) / f"{number}.parquet")
        print(f"{links} files of {file.bytes} bytes, {file.rows * links} rows", flush=True)
        described = json.dumps([links, tail_times, file.time_low, file.time_high, file.rows, file.bytes])
        command = [*_limited(), sys.executable, "-m", "benchmarks.scale", "--child", folder, described]
        code = subprocess.run(command, check=False).returncode
        print("completed" if code == 0 else f"ended with {code}")


async def scan_whole() -> None:
    """All of it: some ten minutes on two cores."""
    await scan(LINKS_WHOLE)


async def scan_busy() -> None:
    """As many files of a table that is being written: a million of its rows are in memory."""
    await scan(LINKS_WHOLE, TAIL_ROWS // HOSTS)


def _limited() -> list[str]:
    """What a command must begin with to have `SCAN_BYTES` of memory at most."""
    for name, limit in CGROUPS:
        group = Path("/sys/fs/cgroup") / name / f"runnel-scan-{os.getpid()}"
        try:
            group.mkdir()
            (group / limit).write_text(str(SCAN_BYTES))
        except OSError:
            continue
        return ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    print("no memory cgroup can be made here: the peak is shown, nothing enforces it")
    return []


async def scan_child(folder: str, described: str) -> None:
    """Read everything and say what it took."""
    links, tail_times, low, high, rows, size = json.loads(described)
    files = [DataFile(f"{n}.parquet", 1, n, 0, rows - 1, 0, rows - 1, low, high, rows, size, 1) for n in range(links)]
    limits = EngineLimits(SCAN_POOL_BYTES, Path(folder), query_seconds=SCAN_SECONDS_MAX)
    engine = Engine(folder, limits)
    tail = (TailBatch(0, _busy_rows(tail_times)),) if tail_times else ()
    source = Links(Path(folder), files, tail)
    for statement in (EVERY_FIELD, BY_HOST):
        cpu, begun = time.process_time(), time.perf_counter()
        found = await _ask(engine, source, statement)
        peak = _peak_bytes()
        print(
            f"{statement[:50]}... {time.perf_counter() - begun:.0f} s, {time.process_time() - cpu:.0f} CPU s, "
            f"peak {peak / 1e6:.0f} MB of {SCAN_BYTES / 1e6:.0f}: {found[0]}",
            flush=True,
        )
    await engine.close()


async def tiny() -> None:
    """Over a shard and an engine in this process, on a local disk."""
    tables = {n: dataclasses.replace(make_table(n), name=f"t{n}") for n in range(1, TINY_TABLES + 1)}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(4) as threads:
        store = open_store(folder)
        identity = Identity(uuid.uuid4().bytes, 1, uuid.uuid4().bytes)

        async def opened() -> Shard:
            budget, limits = MemoryBudget(2**31), ShardLimits(checkpoint_bytes=2**30)
            shard = Shard(store, identity, tables.get, budget, threads, limits, lambda error: print("fatal", error))
            await shard.open()
            return shard

        shard = await opened()
        for time_ns in range(TINY_CHECKPOINTS):
            for first in range(1, TINY_TABLES + 1, 500):
                some = [tables[n] for n in range(first, first + 500)]
                await shard.append([Append(table, 1, one_row([time_ns], ["h"], table.id)) for table in some])
            with _spent("checkpoint"):
                await shard.checkpoint()
        files = list(shard.state.all_files())
        print(f"{len(files)} entries, {len({file.path for file in files})} objects", flush=True)
        await shard.close()
        with _spent("open and replay"):
            shard = await opened()
        engine, source = Engine(folder, EngineLimits(2**29)), ShardTables(shard)
        for table in (tables[1], tables[2], tables[TINY_TABLES]):
            with _spent(f"count {table.name}"):
                stream = await engine.query(
                    f"SELECT count(*) AS n FROM {table.name}", database="db", revision=1, tables=[table], source=source
                )
                assert [row async for batch in stream for row in batch.to_pylist()] == [{"n": TINY_CHECKPOINTS}]
        await engine.close()
        with _spent("merge all"):
            bundles = bundles_of(files, tables)
            job = bundle_job(bundles, tables.get, shard.state.partitions, shard.reserve_names)
            stands = await shard.replace_files(changes_of(job, merge_bundles(store, job)))
        assert all(stands)
        print(f"{len({file.path for file in shard.state.all_files()})} objects", flush=True)
        await shard.close()
        store.close()


class ShardTables:
    """A shard as an engine's `SnapshotSource`."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        return [TableSnapshot(table, tuple(self._shard.snapshot(table))) for table in tables]


@contextlib.contextmanager
def _spent(what: str) -> Iterator[None]:
    cpu, begun = time.process_time(), time.perf_counter()
    yield
    print(f"{what:24} {time.process_time() - cpu:8.3f} CPU s {time.perf_counter() - begun:8.3f} s", flush=True)


def _peak_bytes() -> int:
    """Not what getrusage says, which begins with what the process had before it was this program."""
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024


PARTS: Final[dict[str, Callable[[], Any]]] = {"rewritten": rewritten, "deleted": deleted, "scan": scan, "tiny": tiny}


def main(arguments: Sequence[str]) -> None:
    """The parts that are named, or all."""
    if arguments[:1] == ["--child"]:
        asyncio.run(scan_child(*arguments[1:]))
        return
    for name in arguments or PARTS:
        print(f"== {name}", flush=True)
        asyncio.run({**PARTS, "scan-whole": scan_whole, "scan-busy": scan_busy}[name]())


if __name__ == "__main__":
    main(sys.argv[1:])
