"""Shards read from the store: whatever owners, Checkpoints, collections and faults do meanwhile, a read has all that
was acknowledged before it, nothing twice, and names damage (LOG L3, L10, L15, L16, L30)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from storage.changes import DropTable
from storage.entries import record_entry
from storage.errors import (
    CatalogBehind,
    LogDamaged,
    MemoryExhausted,
    SnapshotTooOld,
    StoreUnavailable,
)
from storage.frames import EntryKind
from storage.kepttail import whole_snapshot
from storage.objects import StoreDenied
from storage.shardstate import ShardState
from storage.storereader import StoreReader, StoreReadLimits
from storage.tailanswer import TailWanted
from tests.harness.storagenode import Ledger, SimExecutor, StorageNode, check_rows, rows_of
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.integration.storage.test_two_owners import in_a_loop, owner, turns

if TYPE_CHECKING:
    from storage.objects import ObjectStore
    from storage.tailanswer import TailAnswer


def reader_at(node: StorageNode, store: ObjectStore | None = None, seed: int = 7, **options: Any) -> StoreReader:
    return StoreReader(
        store or node.store, node.shards[1].identity.store_id, SimExecutor(seed), node.catalog.table_by_id, **options
    )


async def read(reader: StoreReader, node: StorageNode, *names: str) -> TailAnswer:
    return await reader.read_shard(1, [node.table(name).id for name in names or ("t0",)])


def numbers(node: StorageNode, answer: TailAnswer) -> list[int]:
    """The rows' numbers, from files and tail, each file and offset there once."""
    tables = sorted({part.table_id for part in answer.partitions})
    snapshot = whole_snapshot(answer, tables)
    return [n for table in tables for n in rows_of(node.store, snapshot.tables[table])]


def test_l15_a_read_of_the_store_is_what_the_owner_says() -> None:
    async def work() -> None:
        ledger = Ledger()
        node = await owner(MemoryStore(), b"a")
        reader = reader_at(node, revision=lambda: node.catalog.current.revision)
        await node.ensure("t0", ledger)
        await node.ensure("t1", ledger)
        assert (await read(reader, node)).partitions == ()
        for round_ in range(4):
            await node.write("t0", 5, ledger)
            await node.write("t1", 3, Ledger(numbers=1000 + 10 * round_))
            found = await read(reader, node)
            asked = TailWanted({node.table("t0").id: None})
            said = node.shards[1].tail(asked)
            assert (found.epoch, found.position, found.covered) == (said.epoch, said.position, said.covered)
            assert found.checkpoint_seq == said.checkpoint_seq
            assert [p.files for p in found.partitions] == [p.files for p in said.partitions]
            assert [(r.sequence, r.batch.first_offset) for r in found.rows] == [
                (r.sequence, r.batch.first_offset) for r in said.rows
            ]
            assert found.revision == node.catalog.current.revision
            check_rows(numbers(node, found), ledger)
            if round_ % 2:
                await node.shards[1].checkpoint()
        await node.close()
        check_rows(numbers(node, await read(reader, node)), ledger)

    in_a_loop(work)


@pytest.mark.parametrize("seed", range(25))
def test_l10_reads_among_writes_checkpoints_and_take_overs(seed: int) -> None:
    """Everything acknowledged before a read began is in it; nothing that failed, nothing twice."""

    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        owners = [await owner(inner, b"a", seed)]
        await owners[0].ensure("t0", ledger)
        reader = reader_at(owners[0], seed=seed, limits=StoreReadLimits(cache_bytes_max=seed % 3 * 4000))
        done = asyncio.Event()

        async def write() -> None:
            for number in range(40):
                await owners[-1].write("t0", 2, ledger)
                if number % 6 == 5:
                    await asyncio.gather(owners[-1].shards[1].checkpoint(), return_exceptions=True)
                if number % 15 == 14:
                    owners.append(await owner(inner, bytes([98 + len(owners)]), seed + number))
            done.set()

        async def look() -> int:
            count = 0
            while not done.is_set():
                before = Ledger(set(ledger.acknowledged), set(ledger.failed), list(ledger.unanswered))
                found = await read(reader, owners[0])
                now = numbers(owners[0], found)
                assert before.acknowledged <= set(now)
                assert not ledger.failed & set(now)
                assert len(set(now)) == len(now)
                count += 1
            return count

        _, *counts = await asyncio.gather(write(), look(), look())
        assert min(counts) > 3
        check_rows(numbers(owners[0], await read(reader, owners[0])), ledger)
        for node in owners:
            await node.close()

    in_a_loop(work)


def test_l15_a_repeated_read_reads_only_what_is_new() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        node = await owner(inner, b"a")
        await node.ensure("t0", ledger)
        for _ in range(10):
            await node.write("t0", 2, ledger)
        store = FaultStore(inner)
        reader = reader_at(node, store)
        await read(reader, node)
        assert (store.calls["get"], store.calls["list"]) == (11, 2)
        await read(reader, node)
        assert (store.calls["get"], store.calls["list"]) == (11, 4), "L15: each read lists anew"
        await node.write("t0", 2, ledger)
        check_rows(numbers(node, await read(reader, node)), ledger)
        assert store.calls["get"] == 12
        await node.close()

    in_a_loop(work)


def test_l10_an_object_that_is_collected_while_it_is_read_means_start_over() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        node = await owner(inner, b"a")
        await node.ensure("t0", ledger)
        for _ in range(6):
            await node.write("t0", 2, ledger)

        class Collecting(FaultStore):
            """A checkpoint comes between the first listing and the reads."""

            collected = False

            def get(self, path: str) -> bytes:
                if not self.collected:
                    self.collected = True
                    for name in range(2, 7):
                        self.inner.delete(f"logs/1/{name:020d}")
                return super().get(path)

        before = inner.snapshot()
        await node.shards[1].checkpoint()
        after = inner.snapshot()
        store = Collecting(MemoryStore({**before, **after}))
        found = await read(reader_at(node, store), node)
        check_rows(numbers(node, found), ledger)
        await node.close()

    in_a_loop(work)


def test_a_gap_that_stays_is_retriable_and_bounded() -> None:
    async def work() -> None:
        inner = MemoryStore()
        node = await owner(inner, b"a")
        await node.ensure("t0", Ledger())
        for _ in range(4):
            await node.write("t0", 2, Ledger())
        inner.delete(f"logs/1/{3:020d}")
        store = FaultStore(inner)
        with pytest.raises(SnapshotTooOld) as caught:
            await read(reader_at(node, store), node)
        assert caught.value.retriable
        assert store.calls["list"] == 12
        await node.close()

    in_a_loop(work)


def test_l3_damage_is_named_until_it_is_given_up() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        node = await owner(inner, b"a")
        await node.ensure("t0", ledger)
        for _ in range(4):
            await node.write("t0", 2, ledger)
        path = f"logs/1/{3:020d}"
        inner.objects[path] = inner.objects[path][:-20]
        reader = reader_at(node)
        with pytest.raises(LogDamaged, match="log 1 object 3"):
            await read(reader, node)
        await node.close()

    in_a_loop(work)


def test_stores_that_do_not_answer_are_asked_again_and_then_it_is_said() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        node = await owner(inner, b"a")
        await node.ensure("t0", ledger)
        for _ in range(12):
            await node.write("t0", 2, ledger)
        store = FaultStore(inner, seed=3, rates={Fault.UNAVAILABLE: 0.2})
        for _ in range(10):
            check_rows(numbers(node, await read(reader_at(node, store), node)), ledger)
        assert store.fired[Fault.UNAVAILABLE] > 20
        for call in ("list", "get"):
            dead = FaultStore(inner)
            dead.arm(Fault.UNAVAILABLE, call, times=100)
            with pytest.raises(StoreUnavailable):
                await read(reader_at(node, dead), node)
            await turns(50)
            assert 6 <= dead.calls[call] <= 60

        class Denying(FaultStore):
            def get(self, path: str) -> bytes:
                self.calls["get"] += 1
                raise StoreDenied("no")

        denying = Denying(inner)
        with pytest.raises(StoreDenied):
            await read(reader_at(node, denying), node)
        assert denying.calls["get"] == 1
        await node.close()
        await turns(20)
        assert len(asyncio.all_tasks()) == 1

    in_a_loop(work)


def test_l30_rows_of_a_schema_that_is_not_known_here_make_the_reader_catch_up() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        node = await owner(inner, b"a")
        await node.ensure("t0", ledger)
        tables = {node.table("t0").id: node.table("t0")}
        await node.ensure("t0", ledger, ["n", "more"])
        await node.write("t0", 3, ledger)
        caught_up = 0

        async def catch_up() -> None:
            nonlocal caught_up
            caught_up += 1
            tables.update(node.catalog.current.tables_by_id)

        identity = node.shards[1].identity
        reader = StoreReader(inner, identity.store_id, SimExecutor(1), tables.get)
        with pytest.raises(CatalogBehind) as caught:
            await read(reader, node)
        assert caught.value.retriable
        reader = StoreReader(inner, identity.store_id, SimExecutor(1), tables.get, catch_up=catch_up)
        check_rows(numbers(node, await read(reader, node)), ledger)
        await read(reader, node)
        assert caught_up == 1
        await node.ensure("t9", ledger)
        await read(reader, node, "t9")
        assert caught_up == 2, "a table that nobody here has heard of"
        with pytest.raises(CatalogBehind):
            await reader.read_shard(1, [99])
        await node.close()

    in_a_loop(work)


def test_l31_l36_drops_and_cutoffs_are_read_too() -> None:
    async def work() -> None:
        node = await owner(MemoryStore(), b"a")
        await node.ensure("t0", Ledger())
        table = node.table("t0")
        await node.write("t0", 2, Ledger())
        cutoff = record_entry(EntryKind.RETENTION, {"database": 1, "cutoff": 5, "recorded_ms": 6})
        drop = record_entry(EntryKind.DROP, {"revision": 9}, table_id=table.id)
        await asyncio.gather(*node.shards[1].driver.append([cutoff, drop], [None, None]))
        await node.catalog.alter([DropTable("db", "t0")])
        for _ in range(2):
            found = await reader_at(node).read_shard(1, [table.id])
            assert (found.partitions, found.rows, found.dropped) == ((), (), frozenset({table.id}))
            assert found.cutoffs.databases[1].time_ns == 5
            assert found.revision == 9
            await node.shards[1].checkpoint()
        await node.close()

    in_a_loop(work)


def test_a_read_holds_no_more_than_it_may() -> None:
    async def work() -> None:
        ledger = Ledger()
        node = await owner(MemoryStore(), b"a")
        await node.ensure("t0", ledger)
        await node.ensure("t1", ledger)
        for _ in range(20):
            await node.write("t0", 50, ledger)
        reader = reader_at(node, limits=StoreReadLimits(rows_bytes_max=30_000))
        with pytest.raises(MemoryExhausted) as caught:
            await read(reader, node)
        assert caught.value.retriable
        await read(reader, node, "t1")
        await node.shards[1].checkpoint()
        check_rows(numbers(node, await read(reader, node)), ledger)
        await node.close()

    in_a_loop(work)


def test_a_reader_keeps_nothing_of_tables_that_nobody_asked_for() -> None:
    async def work() -> None:
        node = await owner(MemoryStore(), b"a")
        await node.ensure("t0", Ledger())
        await node.ensure("t1", Ledger())
        for name in ("t0", "t1"):
            await node.write(name, 5, Ledger())
        await node.shards[1].checkpoint()
        for name in ("t0", "t1"):
            await node.write(name, 5, Ledger())
        states: list[ShardState] = []
        new = ShardState.__init__

        def remember(self: ShardState, *arguments: Any, **named: Any) -> None:
            new(self, *arguments, **named)
            states.append(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ShardState, "__init__", remember)
            await read(reader_at(node), node)
        state = states[-1]
        table = node.table("t0").id
        assert {file.table_id for file in state.all_files()} == {table}
        assert {t for (t, _), part in state.partitions.items() if part.tail} == {table}
        assert not state.write_ids
        await node.close()

    in_a_loop(work)


def test_a_read_of_a_store_that_lists_stale_is_older_and_whole() -> None:
    """L35: such a store fails the proof at start; here it shows that nothing worse than age follows."""

    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        node = await owner(inner, b"a")
        await node.ensure("t0", ledger)
        for number in range(12):
            await node.write("t0", 2, ledger)
            if number % 5 == 4:
                await node.shards[1].checkpoint()
        store = FaultStore(inner, seed=5, rates={Fault.STALE_LISTING: 0.3})
        for _ in range(20):
            try:
                found = numbers(node, await read(reader_at(node, store), node))
            except SnapshotTooOld:
                continue
            assert sorted(found) == list(range(1, len(found) + 1))
        assert store.fired[Fault.STALE_LISTING] > 5
        await node.close()

    in_a_loop(work)
