"""Large files are planned in parts and read as one scan: the same rows, no file twice, and few threads."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from engine import dfplan_pb2 as pb
from engine import onescan
from engine.engine import Engine, EngineLimits
from engine.ladder import LadderLimits
from engine.stages import inputs
from tests.harness.queries import POOL_BYTES, World, make_table, sorted_rows
from tests.harness.stages import LocalWorkers

if TYPE_CHECKING:
    from pathlib import Path

FILES = 30
ROWS = 40
CPU = make_table()
MEM = make_table("mem", id=2)
LATER = "time >= '1970-01-01T00:00:00.000000160'"
"""Where no file is merged with another."""
STATEMENTS = [
    "SELECT count(*) AS n FROM cpu",
    "SELECT count(*) AS n, sum(usage) AS s, min(usage) AS low, max(time) AS last FROM cpu",
    "SELECT host, usage, time FROM cpu WHERE host = 'h3' AND usage > 17",
    "SELECT host, avg(usage) AS a FROM cpu GROUP BY host ORDER BY host",
    "SELECT host, usage FROM cpu ORDER BY usage DESC, host LIMIT 7",
    "SELECT usage, row_number() OVER (PARTITION BY host ORDER BY usage) AS r FROM cpu WHERE usage > 700",
    "SELECT a.host, a.usage, b.usage AS other FROM cpu a JOIN mem b ON a.host = b.host AND a.usage = b.usage",
    "SELECT count(*) AS n FROM cpu a, cpu b WHERE a.usage = b.usage",
    "SELECT usage FROM cpu WHERE usage > 1190 UNION ALL SELECT usage FROM mem WHERE usage > 20",
    "SELECT count(DISTINCT host) AS n FROM cpu WHERE usage > (SELECT avg(usage) FROM cpu)",
    "SELECT usage FROM cpu WHERE host IN (SELECT host FROM mem WHERE usage < 3)",
]
CHILD = """
import asyncio, os, sys
from pathlib import Path
from engine import onescan
from tests.harness.queries import World
onescan.BYTES_WHOLE_MAX, onescan.FILE_BYTES_MIN = int(sys.argv[2]), 0
world = World(Path(sys.argv[1]))
for number in range(150):
    world.add_file([{"time": number, "host": "a", "usage": number}])
async def work(engine):
    rows = await world.rows(engine, "SELECT count(*) AS n, sum(usage) AS s FROM cpu WHERE usage > 3")
    assert rows == [{"n": 146, "s": sum(range(4, 150))}], rows
    print(len(os.listdir("/proc/self/task")), flush=True)
    os._exit(0)  # threads that end with an interpreter that is ending may abort it
world.run(work)
"""


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Files that lie side by side, a few that are merged, and a tail."""
    filled = World(tmp_path, CPU, MEM)
    for number in range(FILES):
        rows = [{"time": t, "host": f"h{t % 10}", "usage": t} for t in range(number * ROWS, (number + 1) * ROWS)]
        filled.add_file(rows)
    filled.add_file([{"time": t, "host": f"h{t % 10}", "usage": t * 2} for t in range(0, 3 * ROWS, 5)])
    filled.add_tail([{"time": t, "host": f"h{t % 10}", "usage": t + 1} for t in range(ROWS, 2 * ROWS, 7)])
    filled.add_tail([{"time": t, "host": f"h{t % 10}", "usage": t} for t in range(30)], MEM)
    return filled


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every scan is large. How many scans each plan had that ran, before and after its parts were joined."""
    counts: list[tuple[int, int]] = []
    join = onescan.joined

    def joined(written: bytes) -> bytes:
        changed = join(written)
        assert files(written) == files(changed), "a file is read twice, or never"
        counts.append((len(scans(written)), len(scans(changed))))
        return changed

    monkeypatch.setattr(onescan, "BYTES_WHOLE_MAX", 0)
    monkeypatch.setattr(onescan, "FILE_BYTES_MIN", 0)
    monkeypatch.setattr(onescan, "joined", joined)
    return counts


def scans(written: bytes) -> list[pb.FileScanConf]:
    """The scans of an encoded plan."""
    found = []
    pending = [pb.PhysicalPlanNode.FromString(written)]
    while pending:
        node = pending.pop()
        if node.WhichOneof("kind") == "parquet_scan":
            found.append(node.parquet_scan.base_conf)
        elif node.WhichOneof("kind") == "analyze":
            pending.append(node.analyze.input)
        elif node.WhichOneof("kind") == "scalar_subquery":
            pending += [node.scalar_subquery.input, *node.scalar_subquery.subqueries]
        elif node.WhichOneof("kind") is not None:
            pending.extend(inputs(node))
    return found


def files(written: bytes) -> list[tuple[str, int]]:
    """What an encoded plan reads, and from where in a file."""
    return sorted((f.path, f.range.start) for scan in scans(written) for g in scan.file_groups for f in g.files)


def test_small_files_are_one_scan(world: World) -> None:
    assert len(onescan.parts(world.part().files)) == 1


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize("statement", STATEMENTS)
def test_parts_give_the_same_rows(
    world: World, divided: list[tuple[int, int]], statement: str, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"target_partitions": partitions}
    found = world.ask(statement, limits)
    monkeypatch.undo()
    assert sorted_rows(found) == sorted_rows(world.ask(statement, limits))
    for before, after in divided:
        assert after < before - 2, "parts were not joined"


def test_parts_are_one_scan(world: World, divided: list[tuple[int, int]]) -> None:
    (row,) = world.ask(f"SELECT sum(usage) AS s FROM cpu WHERE {LATER}")
    assert row["s"] == sum(range(160, FILES * ROWS))
    ((before, after),) = divided
    assert (before, after) == (7, 1)


@pytest.mark.parametrize("partitions", [1, 3])
@pytest.mark.parametrize(
    ("statement", "rows", "joined"),
    [
        (f"SELECT usage FROM cpu WHERE {LATER} LIMIT 5", 5, True),
        (
            f"SELECT usage FROM cpu WHERE {LATER} AND usage > 300 LIMIT 50 OFFSET 10",
            50,
            True,
        ),
        (f"SELECT usage FROM cpu WHERE {LATER} ORDER BY usage LIMIT 5", 5, True),
        ("(SELECT usage FROM cpu LIMIT 5) UNION ALL (SELECT usage FROM cpu LIMIT 5)", 10, False),
        ("(SELECT usage FROM cpu LIMIT 5) UNION ALL (SELECT usage FROM mem LIMIT 6)", 11, False),
        (
            "(SELECT usage FROM cpu ORDER BY usage LIMIT 5) UNION ALL (SELECT usage FROM cpu ORDER BY usage LIMIT 5)",
            10,
            False,
        ),
    ],
)
def test_rows_are_limited_as_ever(
    world: World, divided: list[tuple[int, int]], statement: str, rows: int, partitions: int, joined: bool
) -> None:
    assert len(world.ask(statement, {"target_partitions": partitions})) == rows
    assert not joined or all(after == 1 < before for before, after in divided)


@pytest.mark.parametrize("limit", [False, True])
def test_what_users_unite_keeps_its_limits(limit: bool) -> None:
    """Two scans of one file each, which are alike, under a union: only without limits they are one."""
    root = pb.PhysicalPlanNode()
    for name in ("a", "b"):
        scan = root.union.inputs.add().parquet_scan.base_conf
        scan.file_groups.add().files.add(path=name)
        if limit:
            scan.limit = b"\x08\x05"
    (one, *others) = scans(onescan.joined(root.SerializeToString()))
    assert len(others) == limit
    assert len(one.file_groups[0].files) == 2 - limit
    above = pb.PhysicalPlanNode()
    above.merge.fetch = 5
    above.merge.input.CopyFrom(root)
    assert len(scans(onescan.joined(above.SerializeToString()))) == 1


def test_statements_that_are_analyzed_read_everything_as_one_scan(world: World, divided: list[tuple[int, int]]) -> None:
    text = str(world.ask(f"EXPLAIN ANALYZE SELECT usage FROM cpu WHERE {LATER}"))
    assert "files_opened=26, files_processed=26" in text
    ((before, after),) = divided
    assert after == 1 < before


def test_with_many_rows_in_memory_parts_stay(
    world: World, divided: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be copied with the plan."""
    monkeypatch.setattr(onescan, "TAILS_BYTES_MAX", 1)
    (row,) = world.ask("SELECT count(*) AS n FROM cpu WHERE usage >= 0")
    assert row["n"] == FILES * ROWS
    assert divided == []


def test_workers_get_one_scan(world: World, divided: list[tuple[int, int]]) -> None:
    workers = LocalWorkers()
    ladder = LadderLimits(query_bytes_min=1)

    async def ask(engine: Engine) -> list[dict[str, Any]]:
        return await world.rows(engine, f"SELECT host, sum(usage) AS s FROM cpu WHERE {LATER} GROUP BY host")

    async def main() -> list[dict[str, Any]]:
        engine = Engine(str(world.folder), EngineLimits(POOL_BYTES, ladder=ladder), workers=workers)
        try:
            return await ask(engine)
        finally:
            await engine.close()

    rows = asyncio.run(main())
    assert {row["host"]: row["s"] for row in rows} == {
        f"h{h}": sum(t for t in range(160, FILES * ROWS) if t % 10 == h) for h in range(10)
    }
    assert workers.runs, "it did not run on workers: this test shows nothing"
    assert [after for before, after in divided if before > 1] == [1]


@pytest.mark.parametrize(("whole_max", "few"), [(0, True), (2**60, False)])
def test_parts_take_few_threads(tmp_path: Path, whole_max: int, few: bool) -> None:
    """In a process of its own. As one scan 150 files take a thread each: then there would be no reason for parts."""
    command = [sys.executable, "-c", CHILD, str(tmp_path), str(whole_max)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=60)
    assert done.returncode == 0, done.stderr
    threads = int(done.stdout.split()[0])
    assert (threads < 60) == few, threads
