"""What the cache of a bucket's files gives: `python -m benchmarks.filecache`, over moto's S3 server on the loopback.

First TSBS's queries on a million rows in several files: without a cache, with an empty one, and with the files in it;
and what each asks of the store. Then which of the files that small statements read again and again are still there
while others scan much, by the share of the cache that one statement may bring in (`filecache.STATEMENT_SHARE`).
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from benchmarks.engine import HOSTS, QUERIES, Snapshots, make_rows
from engine.engine import Engine, EngineLimits
from storage import filecache
from storage.filecache import FileCache, Lease
from storage.objects import CreateOutcome, open_store
from storage.schema import DataFile, PartitionSnapshot
from tests.harness.s3server import S3Server, moto_server

if TYPE_CHECKING:
    from storage.objects import ObjectStore

FILES: Final = 8
ROUNDS: Final = 7
CACHE_BYTES: Final = 2**30
QUERY_BYTES: Final = 512 * 2**20
SIZE: Final = 100
LIMIT_FILES: Final = 100
HOT_FILES: Final = 40
DASHBOARD_FILES: Final = 4
STATEMENTS: Final = 4_000
SCAN_EVERY: Final = 10
SHARES: Final = (0.0, 0.25, 0.5, 1.0, 100.0)
SCANS: Final = (20, 45, 90, 400)


@dataclass
class Bucket:
    """A table's files in a bucket."""

    server: S3Server
    url: str
    source: Snapshots

    def engine(self, cache: Path | None) -> Engine:
        limits = EngineLimits(QUERY_BYTES, cache_folder=cache, cache_bytes_max=CACHE_BYTES if cache else 0)
        return Engine(self.url, limits, self.server.options)

    async def ask(self, engine: Engine, statement: str) -> tuple[float, int]:
        """Milliseconds, and requests for files."""
        before, begin = len(self.server.requests), time.perf_counter()
        table = self.source.table
        stream = await engine.query(statement, database="db", revision=1, tables=[table], source=self.source)
        async for _ in stream:
            pass
        took = (time.perf_counter() - begin) * 1e3
        return took, sum(1 for _, path in self.server.requests[before:] if path.endswith(".parquet"))


def fill(server: S3Server, folder: Path, rows: int) -> Bucket:
    """Files side by side in time."""
    url, source = server.new_store(), Snapshots(folder)
    store = open_store(url, server.options)
    times = rows // HOSTS // FILES
    files = []
    for n in range(FILES):
        name = f"{n}.parquet"
        files.append(source.write(name, make_rows(range(n * times, (n + 1) * times), n), n * times * HOSTS))
        assert store.create(name, [memoryview((folder / name).read_bytes())]) is CreateOutcome.CREATED
    source.part = PartitionSnapshot(0, (1, 1, 1), tuple(files), ())
    store.close()
    return Bucket(server, url, source)


async def queries(bucket: Bucket, folder: Path) -> None:
    """One line for each query: ms and requests."""
    size = sum(file.bytes for file in bucket.source.part.files)
    print(f"{FILES} files, {size / 2**20:.1f} MiB; ms (requests for files)")
    print(f"{'':24}{'without':>16}{'empty':>16}{'warm':>16}")
    without, warm = bucket.engine(None), bucket.engine(folder / "warm")
    for name, statement in QUERIES.items():
        cells = []
        await bucket.ask(without, statement)
        cells.append(min([await bucket.ask(without, statement) for _ in range(ROUNDS)]))
        cold = []
        for n in range(3):
            empty = bucket.engine(folder / f"{name}-{n}")
            await bucket.ask(empty, "SELECT 1")  # what a first statement costs anyway,
            empty._root._open_store().exists("0.parquet")  # and what a first request does
            cold.append(await bucket.ask(empty, statement))
            await empty.close()
        cells.append(min(cold))
        await bucket.ask(warm, statement)
        cells.append(min([await bucket.ask(warm, statement) for _ in range(ROUNDS)]))
        print(f"{name:24}" + "".join(f"{ms:10.1f} ({requests:3})" for ms, requests in cells))
    await without.close()
    await warm.close()


class Endless:
    """A store that has every file."""

    def get_range(self, path: str, start: int, length: int) -> bytes:
        return (bytes(SIZE - 4) + b"PAR1")[start : start + length]


def datafile(number: int) -> DataFile:
    return DataFile(f"{number}.parquet", 1, 0, 0, 0, 0, 0, 0, 0, 1, SIZE, 1)


def hits(folder: Path, scan_files: int) -> tuple[float, float]:
    """Of what small statements, and of what all of them read: which share was in the cache."""
    chosen = random.Random(7)
    cache = FileCache(folder, LIMIT_FILES * SIZE, lambda: cast("ObjectStore", Endless()))
    found = {"small": 0, "all": 0}
    wanted = {"small": 0, "all": 0}
    for n in range(STATEMENTS):
        is_scan = n % SCAN_EVERY == 0
        first = HOT_FILES + chosen.randrange(2000) if is_scan else chosen.randrange(HOT_FILES - DASHBOARD_FILES)
        files = [datafile(first + i) for i in range(scan_files if is_scan else DASHBOARD_FILES)]
        lease = Lease(cache)
        here = len(lease.hold(files))
        for kind in ("all",) if is_scan else ("all", "small"):
            found[kind] += here
            wanted[kind] += len(files)
        lease.bring(files)
        lease.release()
    cache.close()
    return found["small"] / wanted["small"], found["all"] / wanted["all"]


def washing(folder: Path) -> None:
    """A table of hit rates."""
    print(f"\na cache of {LIMIT_FILES} files, {HOT_FILES} of them hot; every {SCAN_EVERY}th statement is a scan")
    print("hits of the others (of all) by the share that one statement may bring in")
    print(f"{'files of a scan':24}" + "".join(f"{share:>16}" for share in SHARES))
    default = filecache.STATEMENT_SHARE
    for scan_files in SCANS:
        cells = []
        for share in SHARES:
            filecache.STATEMENT_SHARE = share  # type: ignore[misc]
            small, everything = hits(folder / f"{scan_files}-{share}", scan_files)
            cells.append(f"{small:9.0%} ({everything:4.0%})")
        print(f"{scan_files:<24}" + "".join(cells))
    filecache.STATEMENT_SHARE = default  # type: ignore[misc]


def main(rows: int) -> None:
    """Print both tables."""
    with tempfile.TemporaryDirectory() as folder, moto_server() as server:
        bucket = fill(server, Path(folder), rows)
        asyncio.run(queries(bucket, Path(folder)))
        washing(Path(folder))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
