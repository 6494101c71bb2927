"""How long the engine takes for TSBS's queries on a million rows, apart from HTTP: `python -m benchmarks.engine`.

One file, a file and an overlapping file, and a file and an overlapping tail; each query through the engine alone
and with its JSON. Times are the best of several, in ms.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa

from engine.engine import Engine, EngineLimits
from engine.formats import ResultFormat, encode
from storage.datafile import encode_parquet, file_rows
from storage.fold import fold
from storage.schema import Column, DataFile, PartitionSnapshot, Role, Table, TableSnapshot, TailBatch, TypeKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.stream import QueryStream

HOSTS: Final = 100
STEP_NS: Final = 10 * 10**9
START_NS: Final = 1_451_606_400 * 10**9
TAGS: Final = ("hostname", "region", "datacenter", "rack", "os", "arch", "team", "service", "version", "environment")
FIELDS: Final = ("user", "system", "idle", "nice", "iowait", "irq", "softirq", "steal", "guest", "guest_nice")
ROUNDS: Final = 9
DAY: Final = "time >= '2016-01-01T00:00:00' AND time < '2016-01-01T12:00:00'"
QUERIES: Final = {
    "single-groupby-1-1-1": (
        "SELECT date_bin(INTERVAL '1 minute', time) AS minute, max(usage_user) FROM cpu WHERE hostname = 'hostname_17'"
        " AND time >= '2016-01-01T08:00:00' AND time < '2016-01-01T09:00:00' GROUP BY minute ORDER BY minute"
    ),
    "double-groupby-1": (
        "SELECT date_bin(INTERVAL '1 hour', time) AS hour, hostname, avg(usage_user) FROM cpu"
        f" WHERE {DAY} GROUP BY hour, hostname ORDER BY hour"
    ),
    "groupby-orderby-limit": (
        "SELECT date_bin(INTERVAL '1 minute', time) AS minute, max(usage_user) FROM cpu"
        " WHERE time < '2016-01-01T12:00:00' GROUP BY minute ORDER BY minute DESC LIMIT 5"
    ),
    "high-cpu-all": f"SELECT * FROM cpu WHERE usage_user > 90 AND {DAY}",
    "count": "SELECT count(*) FROM cpu",
}


def make_table() -> Table:
    """TSBS's cpu."""
    columns = [Column(0, "time", "time", Role.TIME, TypeKind.TIMESTAMP)]
    columns += [Column(1 + i, tag, tag, Role.TAG, TypeKind.STRING) for i, tag in enumerate(TAGS)]
    columns += [Column(50 + i, f"usage_{f}", f"usage_{f}", Role.FIELD, TypeKind.INT64) for i, f in enumerate(FIELDS)]
    return Table(1, "", 1, "cpu", 1, tuple(columns), ())


def make_rows(times: range, seed: int) -> pa.RecordBatch:
    """A row for each host and time, in the order in which they would be written."""
    random = np.random.default_rng(seed)
    hosts = np.tile(np.arange(HOSTS, dtype=np.int32), len(times))
    columns = {"time": pa.array(START_NS + np.repeat(np.asarray(times), HOSTS) * STEP_NS, pa.timestamp("ns"))}
    for i, tag in enumerate(TAGS):
        values = HOSTS if i == 0 else 3 + 2 * i
        names = pa.array([f"{tag}_{v}" for v in range(values)])
        columns[tag] = pa.DictionaryArray.from_arrays(pa.array(hosts % values), names)
    for name in FIELDS:
        walk = np.cumsum(random.normal(0, 1, (len(times), HOSTS)), axis=0) + 50
        columns[f"usage_{name}"] = pa.array(np.clip(walk, 0, 100).astype(np.int64).ravel())
    return pa.RecordBatch.from_pydict(columns)


class Snapshots:
    """A table whose snapshot is set from outside."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = make_table()
        self.part = PartitionSnapshot(0, (1, 1, 0), (), ())

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        return [TableSnapshot(self.table, (self.part,)) for _ in tables]

    def write(self, name: str, rows: pa.RecordBatch, offset: int) -> DataFile:
        """Rows as a DataFile."""
        kept, kind = file_rows(self.table, fold(self.table, [TailBatch(offset, rows)]))
        data = encode_parquet(self.table, kept)
        (self.folder / name).write_bytes(data)
        times = rows.column("time").view(pa.int64()).to_numpy()
        end = offset + rows.num_rows - 1
        low, high = int(times.min()), int(times.max())
        return DataFile(name, 1, 0, offset, end, offset, end, low, high, rows.num_rows, data.size, 1, kind)


async def measure(engine: Engine, source: Snapshots, statement: str) -> tuple[float, float, int]:
    """Best times in ms without and with JSON, and the rows."""

    async def start() -> QueryStream:
        return await engine.query(statement, database="db", revision=1, tables=[source.table], source=source)

    plain, with_json, rows = 1e9, 1e9, 0
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        rows = sum([batch.num_rows async for batch in await start()])
        plain = min(plain, time.perf_counter() - begin)
        begin = time.perf_counter()
        _ = [piece async for piece in encode(ResultFormat.JSON, await start())]
        with_json = min(with_json, time.perf_counter() - begin)
    return plain * 1e3, with_json * 1e3, rows


async def main(rows: int) -> None:
    """Print the table."""
    times = rows // HOSTS
    with tempfile.TemporaryDirectory() as folder:
        source = Snapshots(Path(folder))
        newer = make_rows(range(times * 9 // 10, times + times // 50), 2)
        old = source.write("old.parquet", make_rows(range(times), 1), 0)
        new = source.write("new.parquet", newer, rows)
        tail = (TailBatch(2 * rows, newer),)
        shapes = {
            "one file": PartitionSnapshot(0, (1, 1, 1), (old,), ()),
            "two files that overlap": PartitionSnapshot(0, (1, 1, 2), (old, new), ()),
            "a file and a tail that overlap": PartitionSnapshot(0, (1, 1, 3), (old,), tail),
        }
        engine = Engine(folder, EngineLimits(512 * 2**20))
        for shape, source.part in shapes.items():
            print(f"{shape}\n{'':24}{'engine':>10}{'with JSON':>12}{'rows':>10}")
            for name, statement in QUERIES.items():
                plain, with_json, count = await measure(engine, source, statement)
                print(f"{name:24}{plain:10.1f}{with_json:12.1f}{count:10}")
        await engine.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
