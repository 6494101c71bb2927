"""Shards and the Catalog on a real local disk, with real threads: group commit, restarts, checkpoints, bounds,
retention, and what other engines read of it (LOG L5, L14, L19, L20, L23, L30, L36)."""

from __future__ import annotations

import asyncio
import functools
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import duckdb
import pyarrow as pa
import pytest

from storage.changes import DropTable, SetRetention, SetRetentionBytes
from storage.checkpoint import FILES_INLINE_MAX
from storage.errors import LogBacklogFull, MemoryExhausted, NoSuchTable, RequestTooLarge, ShardClosed, WriteRefused
from storage.filechange import FileChange
from storage.frames import ObjectKind, decode_object
from storage.objects import open_store
from storage.shard import Append
from storage.store import parts_folder
from storage.writeids import RETRY_SECONDS_MAX
from tests.harness.storagenode import (
    LIMITS,
    Ledger,
    StorageNode,
    check_node,
    check_rows,
    other_limits,
    read_all,
    read_store,
)
from tests.harness.stores import Fault, FaultStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from storage.objects import ObjectStore
    from storage.shard import Shard, ShardLimits


def looped(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run the test on a loop of its own."""

    @functools.wraps(test)
    def run(*arguments: Any, **named: Any) -> None:
        asyncio.run(test(*arguments, **named))

    return run


@asynccontextmanager
async def node_at(
    place: Path | ObjectStore, limits: ShardLimits = LIMITS, logs: tuple[int, ...] = (1,), partitions: int = 1
) -> AsyncIterator[StorageNode]:
    """A node with real threads, closed at the end as a process that goes."""
    with ThreadPoolExecutor(8) as threads:
        store = open_store(str(place)) if isinstance(place, Path) else place
        node = StorageNode(store, threads, limits)
        try:
            await node.open(logs, partitions)
            yield node
            assert node.fatal == []
        finally:
            await node.close()
            assert node.budget.used == 0
            if isinstance(place, Path):
                store.close()


def kinds(node: StorageNode, log_id: int = 1) -> dict[int, ObjectKind]:
    folder = f"logs/{log_id}"
    return {
        int(o.name): decode_object(node.store.get(f"{folder}/{o.name}"), o.name).header.kind
        for o in node.store.list(folder)
    }


async def until(condition: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


@looped
async def test_a_life_and_the_next(tmp_path: Path) -> None:
    """Append, checkpoint, collect, sweep, and a restart after each."""
    ledger = Ledger()
    for rounds in range(4):
        async with node_at(tmp_path, logs=(1, 2), partitions=3) as node:
            await check_node(node, ledger)
            await node.ensure("t0", ledger, ["n", f"more{rounds}"])
            await asyncio.gather(*(node.write("t0", 50, ledger, writer) for writer in range(4)))
            if rounds % 2:
                for shard in node.shards.values():
                    await shard.checkpoint()
                    assert shard.state.tail_bytes == 0
                    assert await shard.sweep() == 0
            await check_node(node, ledger)
    assert len(ledger.acknowledged) == 800


@looped
async def test_l5_waiting_writes_share_one_object(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        await asyncio.gather(*(node.write("t0", 2, ledger) for _ in range(50)))
        data = [s for s, kind in kinds(node).items() if kind is ObjectKind.DATA]
        assert len(data) == 2, "one was under way, and while it was the other 49 gathered"
        await check_node(node, ledger)


@looped
async def test_l19_what_a_checkpoint_covers_is_collected_except_opens(tmp_path: Path) -> None:
    ledger = Ledger()
    for rounds in range(3):
        async with node_at(tmp_path) as node:
            await node.ensure("t0", ledger)
            await node.write("t0", 3, ledger)
            if rounds:
                await node.shards[1].checkpoint()
                state = node.shards[1].state
                assert all(k is ObjectKind.OPEN for s, k in kinds(node).items() if s <= state.k)
                assert node.shards[1].counters.collected > 0
            await check_node(node, ledger)
    async with node_at(tmp_path) as node:
        assert list(kinds(node).values()).count(ObjectKind.OPEN) == 4
        assert list(kinds(node).values()).count(ObjectKind.CHECKPOINT) == 1


@looped
async def test_l23_an_idle_shard_writes_nothing(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        await node.write("t0", 3, ledger)
        await node.shards[1].checkpoint()
        before = {(o.name, o.size) for o in node.store.list_all("logs/1")}
        for _ in range(3):
            await node.shards[1].checkpoint()
            await node.shards[1].prove()
        assert {(o.name, o.size) for o in node.store.list_all("logs/1")} == before


@pytest.mark.parametrize("bound", ["checkpoint_bytes", "checkpoint_objects", "log_bytes", "checkpoint_seconds"])
@looped
async def test_l23_each_bound_starts_a_checkpoint(tmp_path: Path, bound: str) -> None:
    ledger = Ledger()
    value: Any = {"checkpoint_bytes": 20_000, "checkpoint_objects": 5, "log_bytes": 9_000, "checkpoint_seconds": 0.2}
    async with node_at(tmp_path, other_limits(**{bound: value[bound]})) as node:
        await node.ensure("t0", ledger)
        for _ in range(5 if bound != "checkpoint_bytes" else 20):
            await node.write("t0", 60, ledger)
        await until(lambda: node.shards[1].counters.checkpoints > 0)
        await check_node(node, ledger)


@asynccontextmanager
async def without_checkpoints() -> AsyncIterator[None]:
    """Checkpoints do not get through; what is asked of them is left undone."""

    async def stuck(self: Shard) -> None:
        await asyncio.Event().wait()

    with mock.patch("storage.shard.Shard._checkpoint_now", stuck):
        yield


async def fill(node: StorageNode, ledger: Ledger) -> None:
    for _ in range(300):
        await asyncio.sleep(0.002)
        (part,) = node.parts("t0", ledger.take(20), writer=2)
        await node.shards[1].append([part.append])


@pytest.mark.parametrize("bound", [{"checkpoint_objects": 3}, {"log_bytes": 5_000}, {"checkpoint_seconds": 0.2}])
@looped
async def test_l23_at_twice_a_bound_appends_are_refused(tmp_path: Path, bound: dict[str, Any]) -> None:
    ledger = Ledger()
    async with without_checkpoints(), node_at(tmp_path, other_limits(**bound)) as node:
        await node.ensure("t0", ledger)
        (part,) = node.parts("t0", ledger.take(2), writer=1)
        await node.shards[1].append([part.append])
        with mock.patch("storage.admission.BACKLOG_SECONDS_MIN", 0.0), pytest.raises(LogBacklogFull) as caught:
            await fill(node, ledger)
        assert caught.value.retriable
        assert "wait for a checkpoint" in str(caught.value)
        state = node.shards[1].state
        assert state.objects_above_k <= 300
        assert await node.shards[1].append([part.append]) == [0], "L7: a repeated write is answered all the same"
        assert node.budget.used == state.tail_bytes


@looped
async def test_l23_when_the_backlog_is_written_appends_go_on(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path, other_limits(checkpoint_objects=2)) as node:
        await node.ensure("t0", ledger)
        for _ in range(40):
            await node.write("t0", 5, ledger)
        await until(lambda: node.shards[1].state.objects_above_k <= 2)
        await node.write("t0", 5, ledger)
        assert ledger.acknowledged
        await check_node(node, ledger)


@looped
async def test_l23_memory_is_refused_and_comes_back(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        node.budget.bytes_max = 200_000
        refused = 0
        codes = set()
        for _ in range(60):
            try:
                (part,) = node.parts("t0", ledger.take(500), writer=1)
                await node.shards[1].append([part.append])
            except MemoryExhausted as error:
                refused += 1
                codes.add((error.code, error.retriable))
                await until(lambda: node.budget.used < 100_000)  # the refusal started a checkpoint
            assert node.budget.used <= node.budget.bytes_max
        assert refused > 2
        assert codes == {("memory_exhausted", True)}
        assert node.shards[1].counters.checkpoints > 2
        await node.shards[1].checkpoint()
        assert node.budget.used == node.shards[1].state.tail_bytes == 0


@looped
async def test_l23_a_replay_that_does_not_fit_checkpoints_on_its_way(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        for _ in range(30):
            await node.write("t0", 100, ledger)
        whole = node.shards[1].state.tail_bytes
    async with node_at(tmp_path, other_limits(replay_bytes_max=whole // 5)) as node:
        assert node.shards[1].state.tail_bytes <= whole // 5
        assert node.shards[1].counters.checkpoints >= 3
        await check_node(node, ledger)
    async with node_at(tmp_path) as node:
        await check_node(node, ledger)
        assert len(ledger.acknowledged) == 3000


@looped
async def test_l23_many_files_move_into_parts_that_are_written_once(tmp_path: Path) -> None:
    ledger = Ledger()
    rounds = FILES_INLINE_MAX + 40
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        with mock.patch("storage.localstore.os.fsync"):  # durability is not what is looked at here
            for _ in range(rounds):
                await node.write("t0", 1, ledger)
                await node.shards[1].checkpoint()
        (part,) = node.shards[1].state.parts
        assert len(part.files) == FILES_INLINE_MAX + 1
        assert len(node.shards[1].state.loose) == 39
        assert len(node.store.list_all(parts_folder(1))) == 1
        newest = max(s for s, kind in kinds(node).items() if kind is ObjectKind.CHECKPOINT)
        size = next(o.size for o in node.store.list("logs/1") if int(o.name) == newest)
        assert size < 40_000, "its cost does not grow with the table"
    async with node_at(tmp_path) as node:
        await check_node(node, ledger)
        assert len(list(node.shards[1].state.all_files())) == rounds
        await node.write("t0", 1, ledger)
        await node.shards[1].checkpoint()
        assert [p.path for p in node.shards[1].state.parts] == [part.path]
        assert await node.shards[1].sweep() == 0
        await check_node(node, ledger)


@looped
async def test_l14_a_snapshot_is_one_moment(tmp_path: Path) -> None:
    """Taken between two appends and a checkpoint, it keeps meaning what it meant."""
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        await node.write("t0", 5, ledger)
        (before,) = node.shards[1].snapshot(node.table("t0"))
        await node.write("t0", 5, ledger)
        await node.shards[1].checkpoint()
        (later,) = node.shards[1].snapshot(node.table("t0"))
        assert [b.rows.num_rows for b in before.tail] == [5]
        assert before.files == ()
        assert (len(later.files), later.tail) == (1, ())
        assert later.position > before.position


@looped
async def test_duckdb_reads_the_same_rows_from_the_files_as_they_lie(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path, partitions=3) as node:
        await node.ensure("t0", ledger)
        for _ in range(3):
            await node.write("t0", 400, ledger)
            await node.shards[1].checkpoint()
        await node.write("t0", 10, ledger)
        snapshots = node.shards[1].snapshot(node.table("t0"))
        files = [file for part in snapshots for file in part.files]
        assert all(file.is_slice for file in files)
        paths = sorted({str(node.store.local_path(file.path)) for file in files})
        assert (len(files), len(paths)) == (9, 3)
        tail = {n for part in snapshots for b in part.tail for n in b.rows.column("n").to_pylist()}
        query = "SELECT n, host, epoch_ns(time) FROM read_parquet($paths) ORDER BY n"
        found = duckdb.connect().execute(query, {"paths": paths}).fetchall()
        assert {n for n, _, _ in found} | tail == ledger.acknowledged
        assert all(host == f"h{n % 5}" and time == n for n, host, time in found)
        assert len(found) + len(tail) == len(ledger.acknowledged) == 1210
        table, part = node.table("t0").id, files[0].partition
        query = "SELECT count(*) FROM read_parquet($paths) WHERE _runnel_table = $table AND _runnel_partition = $part"
        counted = duckdb.connect().execute(query, {"paths": paths, "table": table, "part": part}).fetchall()
        assert counted == [(sum(file.rows for file in files if file.partition == part),)]


@looped
async def test_rewritten_points_are_folded_to_their_newest_values(tmp_path: Path) -> None:
    """L24: by offset, within the memtable and across files; DuckDB finds them by the documented key."""
    async with node_at(tmp_path) as node:
        await node.ensure("t0", Ledger())
        table = node.table("t0")
        for value in range(6):
            columns = {
                "time": pa.array([1, 1, 2], pa.timestamp("ns")), "host": pa.array(["a", "a", "a"]).dictionary_encode(),
                "n": pa.array([value * 10, None, value], pa.int64()),
            }  # fmt: skip
            rows = pa.RecordBatch.from_pydict(columns)
            await node.shards[1].append([Append(table, 1, rows)])
            if value % 2:
                await node.shards[1].checkpoint()
        (part,) = node.shards[1].snapshot(table)
        assert [(f.rows, f.offset_low, f.offset_high) for f in part.files] == [(2, 0, 5), (2, 6, 11), (2, 12, 17)]
        paths = [str(node.store.local_path(file.path)) for file in part.files]
        newest = "arg_max(n, _runnel_offset)"
        query = f"SELECT host, epoch_ns(time) t, {newest} FROM read_parquet($paths) GROUP BY ALL ORDER BY t"
        assert duckdb.connect().execute(query, {"paths": paths}).fetchall() == [("a", 1, 50), ("a", 2, 5)]


# -- write ids, limits, drops ------------------------------------------------------------------------------


@looped
async def test_l7_a_repeated_write_is_one_row_also_after_restarts_and_checkpoints(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        (part,) = node.parts("t0", ledger.take(4), writer=1)
        assert await node.shards[1].append([part.append]) == [0]
        assert await node.shards[1].append([part.append]) == [0]
    for checkpoint in (False, True, False):
        async with node_at(tmp_path) as node:
            assert await node.shards[1].append([part.append]) == [0]
            assert len(await read_all(node)) == 4
            if checkpoint:
                await node.shards[1].checkpoint()


@looped
async def test_l7_below_the_horizon_a_write_is_refused_and_a_newer_born_is_taken(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        (part,) = node.parts("t0", ledger.take(2), writer=1)
        await node.shards[1].append([part.append])
        (late,) = node.parts("t0", ledger.take(2), writer=2)
        old = Append(late.append.table, 1, late.append.rows, late.append.write_id, born=0)
        with mock.patch("storage.shard.time.time_ns", return_value=time.time_ns() + (RETRY_SECONDS_MAX + 9) * 10**9):
            await node.shards[1].checkpoint()
        assert node.shards[1].state.horizon == 2
        for repeated in (old, Append(part.append.table, 1, part.append.rows, part.append.write_id, born=1)):
            with pytest.raises(WriteRefused) as caught:
                await node.shards[1].append([repeated])
            assert caught.value.retriable
        await node.shards[1].append([late.append])
    async with node_at(tmp_path) as node:
        assert node.shards[1].state.horizon == 2
        with pytest.raises(WriteRefused):
            await node.shards[1].append([Append(part.append.table, 1, part.append.rows, part.append.write_id, born=1)])
        assert len(await read_all(node)) == 4


@looped
async def test_f15_a_request_that_fits_no_object_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    async with node_at(tmp_path) as node:
        await node.ensure("t0", Ledger())
        (part,) = node.parts("t0", range(1, 5000), writer=1)
        with mock.patch("storage.shard.OBJECT_BYTES_MAX", 10_000), pytest.raises(RequestTooLarge, match="10000"):
            await node.shards[1].append([part.append])
        assert node.budget.used == 0
        assert list(kinds(node).values()) == [ObjectKind.OPEN]


@looped
async def test_l31_a_dropped_table_takes_no_rows_and_shows_none(tmp_path: Path) -> None:
    ledger = Ledger()
    async with node_at(tmp_path) as node:
        await node.ensure("t0", ledger)
        table = node.table("t0")
        (part,) = node.parts("t0", (1, 2), writer=1)
        await node.shards[1].append([part.append])
        await node.shards[1].drop(table.id, 9)
        assert node.shards[1].snapshot(table) == []
        (more,) = node.parts("t0", (3,), writer=2)
        with pytest.raises(NoSuchTable):
            await node.shards[1].append([more.append])
        await node.catalog.alter([DropTable("db", "t0")])
        await node.shards[1].checkpoint()  # its rows are written as those of any other table
    async with node_at(tmp_path) as node:
        assert node.shards[1].snapshot(table) == []
        assert node.shards[1].state.revision == 9


@looped
async def test_a_closed_shard_refuses_in_words(tmp_path: Path) -> None:
    async with node_at(tmp_path) as node:
        await node.ensure("t0", Ledger())
        (part,) = node.parts("t0", (1,), writer=1)
        shard = node.shards[1]
        await shard.close()
        for call in (shard.append([part.append]), shard.prove(), shard.sweep()):
            with pytest.raises(ShardClosed):
                await call
        await shard.close()


# -- retention (L36) ---------------------------------------------------------------------------------------


HOUR = 3600 * 10**9


def cutoff_of(shard: Shard, retention_ns: int = 0) -> int | None:
    """The recorded cut-off of database 1, for this period."""
    known = shard.state.cutoffs.get(1)
    return None if known is None else known.for_period(retention_ns)


async def aged(node: StorageNode, ages_ns: list[int]) -> frozenset[int]:
    """Rows that are so old; returns the ids of their table."""
    await node.ensure("t0", Ledger())
    now = time.time_ns()
    columns = {"time": pa.array([now - a for a in ages_ns], pa.timestamp("ns")), "n": pa.array(range(len(ages_ns)))}
    await node.shards[1].append([Append(node.table("t0"), 1, pa.RecordBatch.from_pydict(columns))])
    return frozenset({node.table("t0").id})


@looped
async def test_l36_a_cutoff_is_recorded_when_it_hides_a_row_and_comes_back(tmp_path: Path) -> None:
    async with node_at(tmp_path) as node:
        ids = await aged(node, [HOUR, 5 * HOUR])
        shard = node.shards[1]
        await shard.cutoffs.by_age(1, ids, 6 * HOUR)
        assert cutoff_of(shard) is None, "nothing is older than six hours"
        await asyncio.gather(*(shard.cutoffs.by_age(1, ids, 2 * HOUR) for _ in range(10)))
        cutoff = cutoff_of(shard)
        assert cutoff is not None
        assert cutoff <= time.time_ns() - 2 * HOUR
        assert list(kinds(node).values()).count(ObjectKind.DATA) == 2, "readers at once share one record"
        await shard.cutoffs.by_age(1, ids, HOUR // 2)
        assert cutoff_of(shard) == cutoff, "at most once a minute"
    async with node_at(tmp_path) as node:
        assert cutoff_of(node.shards[1]) == cutoff
        await node.shards[1].checkpoint()
    async with node_at(tmp_path) as node:
        assert cutoff_of(node.shards[1]) == cutoff


@looped
async def test_l36_after_a_minute_it_rises_only_if_another_row_is_hidden_and_never_falls(tmp_path: Path) -> None:
    async with node_at(tmp_path) as node:
        ids = await aged(node, [5 * HOUR, 4 * HOUR])
        shard = node.shards[1]
        with mock.patch("storage.cutoffrecorder.CUTOFF_EVERY_MS", 0):
            await shard.cutoffs.by_age(1, ids, 2 * HOUR)
            cutoff = cutoff_of(shard)
            await shard.cutoffs.by_age(1, ids, HOUR)
            assert cutoff_of(shard) == cutoff, "all of them are hidden already"
            await aged(node, [HOUR + HOUR // 2])
            await shard.cutoffs.by_age(1, ids, 9 * HOUR)
            assert cutoff_of(shard) == cutoff, "a longer period brings nothing back"
            await shard.cutoffs.by_age(1, ids, HOUR)
            assert (cutoff_of(shard) or 0) > (cutoff or 0)


@looped
async def test_l36_a_period_that_was_made_longer_goes_on_hiding_rows(tmp_path: Path) -> None:
    """It did not for as long as it was made longer by, and showed rows that were older by as much."""
    async with node_at(tmp_path) as node:
        ids = await aged(node, [3 * HOUR, 5 * HOUR])
        shard, now = node.shards[1], time.time_ns()
        with mock.patch("storage.cutoffrecorder.CUTOFF_EVERY_MS", 0):
            await shard.cutoffs.by_age(1, ids, HOUR)
            before = cutoff_of(shard, HOUR) or 0
            later = now + 3 * HOUR // 2
            with (
                mock.patch("storage.cutoffrecorder.time.time_ns", return_value=later),
                mock.patch.object(type(node.store), "clock_ms", return_value=later // 10**6),
            ):
                await shard.cutoffs.by_age(1, ids, 4 * HOUR)
            assert cutoff_of(shard, 4 * HOUR) == later // 10**6 * 10**6 - 4 * HOUR, "the newer row is that old by now"
            shorter = cutoff_of(shard, HOUR) or 0
            assert 0 < before < shorter <= later - HOUR, "and a period made shorter again hides no less than before"
    async with node_at(tmp_path) as node:
        assert cutoff_of(node.shards[1], HOUR) == shorter


@looped
async def test_l36_the_smaller_clock_counts(tmp_path: Path) -> None:
    async with node_at(tmp_path) as node:
        ids = await aged(node, [5 * HOUR])
        behind = (time.time_ns() - 4 * HOUR) // 10**6
        with mock.patch.object(type(node.store), "clock_ms", return_value=behind):
            await node.shards[1].cutoffs.by_age(1, ids, 2 * HOUR)
            assert cutoff_of(node.shards[1]) is None, "by the store's clock nothing is that old"
            await node.shards[1].cutoffs.by_age(1, ids, HOUR // 2)
            assert cutoff_of(node.shards[1]) == behind * 10**6 - HOUR // 2
            longer = cutoff_of(node.shards[1], 3 * HOUR)
            assert longer == behind * 10**6 - 3 * HOUR, "also for a period that is made longer"
            await aged(node, [4 * HOUR + HOUR // 4])
            await node.shards[1].cutoffs.by_age(1, ids, HOUR // 5)
            assert cutoff_of(node.shards[1]) == behind * 10**6 - HOUR // 2, "at most once a minute, by any clock"


@looped
async def test_l36_a_full_store_stops_no_reader(tmp_path: Path) -> None:
    """What was recorded goes on to hold: a record that cannot be written is no reason to show nothing."""
    inner = open_store(str(tmp_path))
    store = FaultStore(inner)
    async with node_at(store) as node:
        ids = await aged(node, [HOUR, 5 * HOUR])
        shard = node.shards[1]
        store.arm(Fault.FULL)
        await shard.cutoffs.by_age(1, ids, 2 * HOUR)
        assert store.fired[Fault.FULL] == 1
        assert cutoff_of(shard) is None
        await shard.cutoffs.by_age(1, ids, 2 * HOUR)
        assert cutoff_of(shard) is not None, "there is room again"
    inner.close()


async def filed(node: StorageNode, *times: int) -> None:
    """Rows of these times, each in a file of its own."""
    await node.ensure("t0", Ledger())
    for at in times:
        columns = {"time": pa.array([at], pa.timestamp("ns")), "n": pa.array([at])}
        await node.shards[1].append([Append(node.table("t0"), 1, pa.RecordBatch.from_pydict(columns))])
        await node.shards[1].checkpoint()


def cut_of(node: StorageNode) -> int | None:
    """The cut-off by bytes that holds of the one partition."""
    catalog, table = node.catalog.current, node.table("t0")
    database = catalog.databases_by_id[table.database_id]
    return node.shards[1].cutoffs.known().by_bytes(table, database, 1)


@looped
async def test_l36_by_bytes_a_cutoff_is_recorded_once_for_each_checkpoint_and_revision(tmp_path: Path) -> None:
    async with node_at(tmp_path) as node:
        await filed(node, 10, 20, 30, 40)
        shard = node.shards[1]
        size = next(iter(shard.state.all_files())).bytes
        objects = len(kinds(node))
        await shard.cutoffs.by_bytes(node.catalog.current)
        assert len(kinds(node)) == objects, "there is no limit"
        await node.catalog.alter([SetRetentionBytes("db", 3 * size, "t0")])
        await asyncio.gather(*(shard.cutoffs.by_bytes(node.catalog.current) for _ in range(10)))
        assert (cut_of(node), len(kinds(node))) == (11, objects + 1), "readers at once share one record"
        await filed(node, 5)
        objects = len(kinds(node))
        await shard.cutoffs.by_bytes(node.catalog.current)
        assert (cut_of(node), len(kinds(node))) == (11, objects), "what is hidden already is not worth a record"
        await filed(node, 50)
        await shard.cutoffs.by_bytes(node.catalog.current)
        assert cut_of(node) == 21
        await node.catalog.alter([SetRetentionBytes("db", size, "t0")])
        await shard.cutoffs.by_bytes(node.catalog.current)
        assert cut_of(node) == 41, "a smaller limit holds at once"
    async with node_at(tmp_path) as node:
        assert cut_of(node) == 41
        await node.shards[1].checkpoint()
    async with node_at(tmp_path) as node:
        assert cut_of(node) == 41, "from the Checkpoint"
        await node.catalog.alter([SetRetentionBytes("db", 3 * size, "t0")])
        assert cut_of(node) is None, "a greater one begins anew"
        await node.shards[1].cutoffs.by_bytes(node.catalog.current)
        assert cut_of(node) == 21
        await node.catalog.alter([SetRetentionBytes("db", None, "t0")])
        assert cut_of(node) is None


@looped
async def test_l18_l36_cutoffs_stand_in_checkpoints_that_only_change_files(tmp_path: Path) -> None:
    async with node_at(tmp_path) as node:
        await filed(node, 10, 20, 30)
        await node.catalog.alter([SetRetentionBytes("db", 1, "t0")])
        shard = node.shards[1]
        await shard.cutoffs.by_bytes(node.catalog.current)
        await filed(node, 31)
        (oldest, *_) = shard.state.all_files()
        assert await shard.replace_files([FileChange((oldest,), ())]) == [True]
        assert cut_of(node) == 21
    async with node_at(tmp_path) as node:
        assert cut_of(node) == 21


@looped
async def test_l36_by_bytes_a_full_store_stops_no_reader_and_it_is_tried_again(tmp_path: Path) -> None:
    inner = open_store(str(tmp_path))
    store = FaultStore(inner)
    async with node_at(store) as node:
        await filed(node, 10, 20)
        await node.catalog.alter([SetRetentionBytes("db", 1, "t0")])
        store.arm(Fault.FULL)
        await node.shards[1].cutoffs.by_bytes(node.catalog.current)
        assert (store.fired[Fault.FULL], cut_of(node)) == (1, None)
        await node.shards[1].cutoffs.by_bytes(node.catalog.current)
        assert cut_of(node) == 11, "there is room again"
    inner.close()


@looped
async def test_l36_a_table_with_a_period_of_its_own_moves_no_other(tmp_path: Path) -> None:
    async with node_at(tmp_path) as node:
        await aged(node, [HOUR, 5 * HOUR])
        await node.catalog.alter([SetRetention("db", 2 * HOUR), SetRetention("db", 8 * HOUR, "t0")])
        shard, table = node.shards[1], node.table("t0")
        database = node.catalog.current.databases_by_id[table.database_id]

        await node.ensure("t1", Ledger())

        async def cutoff() -> int | None:
            await shard.cutoffs.record(node.catalog.current, [node.table("t0"), node.table("t1")])
            return shard.cutoffs.known().by_age(node.table("t0"), database)

        assert await cutoff() is None, "nothing of it is that old"
        assert not shard.state.cutoffs, "its rows are none of the database's that would expire"
        await node.catalog.alter([SetRetention("db", 0, "t0")])
        assert await cutoff() is None
        await node.catalog.alter([SetRetention("db", 3 * HOUR, "t0")])
        found = await cutoff()
        assert found is not None
        assert found <= time.time_ns() - 3 * HOUR
        assert not shard.state.cutoffs
        await node.catalog.alter([SetRetention("db", None, "t0")])
        database = node.catalog.current.databases_by_id[table.database_id]
        assert (await cutoff() or 0) > found, "as its database again"


# -- a store that misbehaves, with real threads ------------------------------------------------------------


@looped
async def test_lost_answers_on_a_real_disk(tmp_path: Path) -> None:
    ledger = Ledger()
    rates = {Fault.LOST_ANSWER: 0.05, Fault.LOST_REQUEST: 0.05, Fault.LATE: 0.05, Fault.DELAY: 0.1}
    inner = open_store(str(tmp_path))
    async with node_at(inner) as node:
        await node.ensure("t0", ledger)
    store = FaultStore(inner, seed=5, rates=rates)
    async with node_at(store, other_limits(checkpoint_objects=7)) as node:
        for first in range(0, 40, 4):  # how the threads meet decides which call draws which fault
            await asyncio.gather(*(writer(node, ledger, number) for number in range(first, first + 4)))
            if all(store.fired[fault] for fault in rates):
                break
    assert all(store.fired[fault] for fault in rates)
    store.land_late()
    async with node_at(inner) as node:
        await check_node(node, ledger)
        assert len(ledger.acknowledged) > 100  # enough to have shown something; how many is a matter of timing
        check_rows(read_store(inner, node), ledger)
    inner.close()


async def writer(node: StorageNode, ledger: Ledger, number: int) -> None:
    for _ in range(30):
        await node.write("t0", 5, ledger, number)
