"""Range deletes over the real Shard: seen at once, by owners, successors and readers of the store, whatever checkpoints
and merges come between (LOG L14, L15, L18, L21, L25, L26)."""

from __future__ import annotations

import io
import itertools
import random
from typing import TYPE_CHECKING
from unittest import mock

import pyarrow.parquet as pq
import pytest

from nodes.tailmessages import CHUNK_BYTES, chunks, rows_to
from storage.deletes import DELETE_BYTES_MAX, DELETES_MAX, RangeDelete, TagValues, of_file
from storage.errors import LogBacklogFull, RequestTooLarge
from storage.filechange import FileChange
from storage.fold import fold
from storage.frames import WriteId
from storage.schema import NO_ROWS, TailBatch
from storage.shard import Append
from storage.tailanswer import TailRows
from tests.harness.merging import merged
from tests.harness.storagenode import Ledger, StorageNode, store_snapshot
from tests.harness.stores import MemoryStore
from tests.integration.storage.test_two_owners import in_a_loop, owner

if TYPE_CHECKING:
    from collections.abc import Iterable

    from storage.objects import ObjectStore
    from storage.schema import PartitionSnapshot, Table
    from storage.shard import Shard

_deletes = itertools.count(1)


def numbers(store: ObjectStore, table: Table, parts: Iterable[PartitionSnapshot]) -> list[int]:
    """The row numbers that a reader of a snapshot sees."""
    found: list[int] = []
    for part in parts:
        newer = [batch.delete for batch in part.tail if batch.delete is not None]
        for file in part.files:
            rows = pq.read_table(io.BytesIO(store.get(file.path)))
            gone = [delete.matches(table, rows) for delete in of_file(file, part.pending, newer)]
            found += [n for i, n in enumerate(rows.column("n").to_pylist()) if not any(mask[i] for mask in gone)]
        tail = fold(table, part.tail)
        found += tail.column("n").to_pylist() if tail.num_rows else []
    return sorted(found)


def seen(node: StorageNode) -> list[int]:
    """By the owner; the store alone says the same (L15)."""
    table, shard = node.table("t0"), node.shards[1]
    found = numbers(node.store, table, shard.snapshot(table))
    state = store_snapshot(node.store, shard.identity.store_id, 1, node.catalog.table_by_id)
    assert numbers(node.store, table, state.snapshot(table)) == found
    return found


async def write(node: StorageNode, keys: Iterable[int]) -> None:
    (part,) = node.parts("t0", list(keys), writer=1)
    await node.shards[1].append([part.append])


async def delete(node: StorageNode, what: RangeDelete) -> Append:
    table, write_id = node.table("t0"), WriteId(1, b"d" * 16, 0, next(_deletes), 1)
    part = Append(table, table.partitions[0].id, NO_ROWS, write_id, 0, delete=what)
    await node.shards[1].append([part])
    return part


async def merge(node: StorageNode, count: int = 64) -> list[bool]:
    """Merge up to so many files, the oldest."""
    shard = node.shards[1]
    change, _ = await merged(node, shard, tuple(shard.state.all_files())[:count])
    return await shard.replace_files([change])


def pending(shard: Shard) -> int:
    return sum(len(state.pending) for state in shard.state.partitions.values())


async def opened(store: MemoryStore, name: bytes = b"a") -> StorageNode:
    node = await owner(store, name)
    await node.ensure("t0", Ledger())
    return node


def test_l26_any_history_of_writes_deletes_checkpoints_merges_and_owners() -> None:
    async def work() -> None:
        for seed in range(12):
            chooser, store, expected = random.Random(seed), MemoryStore(), set[int]()
            node = await opened(store)
            host = node.table("t0").tags[0].id
            for step in range(45):
                kind = chooser.choice(["write"] * 4 + ["delete"] * 3 + ["checkpoint"] * 2 + ["merge", "owner"])
                low = chooser.randrange(40)
                if kind == "write":
                    keys = chooser.sample(range(50), 4)
                    await write(node, keys)
                    expected |= set(keys)
                elif kind == "delete":
                    high, hosts = low + chooser.randrange(15), chooser.sample(range(5), 2)
                    tags = (TagValues(host, tuple(f"h{h}" for h in hosts)),) if step % 2 else ()
                    await delete(node, RangeDelete(low, high, tags))
                    expected -= {n for n in expected if low <= n <= high and (not tags or n % 5 in hosts)}
                elif kind == "checkpoint":
                    await node.shards[1].checkpoint()
                elif kind == "merge" and list(node.shards[1].state.all_files()):
                    await merge(node)
                elif kind == "owner":
                    node = await owner(store, bytes([65 + step]), seed=step)
                assert sorted(set(seen(node))) == sorted(expected), (seed, step, kind)
            await node.shards[1].checkpoint()
            if list(node.shards[1].state.all_files()):
                await merge(node)
            assert pending(node.shards[1]) == 0, "carried out in every file, so dropped"
            assert seen(node) == sorted(expected)

    in_a_loop(work)


def test_l7_a_delete_that_is_sent_again_takes_nothing_that_came_between() -> None:
    async def work() -> None:
        store = MemoryStore()
        node = await opened(store)
        await write(node, [1, 2])
        part = await delete(node, RangeDelete(0, 9))
        await write(node, [2, 3])
        assert await node.shards[1].append([part]) == [2]
        assert seen(node) == [2, 3]
        again = await owner(store, b"b", seed=2)
        assert await again.shards[1].append([part]) == [2]
        assert seen(again) == [2, 3]

    in_a_loop(work)


def test_l21_a_merge_that_does_not_know_of_a_delete_is_void() -> None:
    async def work() -> None:
        node = await opened(MemoryStore())
        shard = node.shards[1]
        for keys in ([1, 2], [3, 4]):
            await write(node, keys)
            await shard.checkpoint()
        late, _ = await merged(node, shard, tuple(shard.state.all_files()))
        await delete(node, RangeDelete(2, 3))
        await shard.checkpoint()
        assert await shard.replace_files([late]) == [False]
        assert seen(node) == [1, 4]
        assert pending(shard) == 1
        gone = [FileChange((file,), ()) for file in shard.state.all_files()]
        assert await shard.replace_files(gone[:1]) == [True], "what only removes need not know of any"
        assert await merge(node) == [True]
        assert (seen(node), pending(shard)) == ([4], 0)
        state = shard.state.partitions[node.table("t0").id, 1]
        assert state.changes_from == 5, "L25: it moves up when a delete is dropped"

    in_a_loop(work)


def test_l21_without_that_rule_deleted_rows_come_back() -> None:
    """The rule taken out: the same history shows rows that were deleted."""

    async def work() -> None:
        node = await opened(MemoryStore())
        shard = node.shards[1]
        for keys in ([1, 2], [3, 4]):
            await write(node, keys)
            await shard.checkpoint()
        late, _ = await merged(node, shard, tuple(shard.state.all_files()))
        await delete(node, RangeDelete(2, 3))
        await shard.checkpoint()
        with mock.patch("storage.shard.standing", lambda changes, paths, pending: [True] * len(changes)):
            await shard.replace_files([late])
        assert seen(node) == [1, 2, 3, 4]

    in_a_loop(work)


def test_l21_a_merge_that_knew_of_a_delete_before_its_checkpoint_stands() -> None:
    async def work() -> None:
        node = await opened(MemoryStore())
        shard = node.shards[1]
        for keys in ([1, 2], [3, 4]):
            await write(node, keys)
            await shard.checkpoint()
        await delete(node, RangeDelete(2, 3))
        knowing, _ = await merged(node, shard, tuple(shard.state.all_files()))
        await write(node, [2])
        await shard.checkpoint()
        assert pending(shard) == 1
        assert await shard.replace_files([knowing]) == [True]
        assert pending(shard) == 0
        assert seen(node) == [1, 2, 4]

    in_a_loop(work)


def test_l23_there_is_an_end_to_deletes_that_wait() -> None:
    async def work() -> None:
        node = await opened(MemoryStore())
        await write(node, [1])
        await node.shards[1].checkpoint()
        with mock.patch("storage.admission.DELETES_MAX", 3):
            for n in range(3):
                await delete(node, RangeDelete(n, n))
            with pytest.raises(LogBacklogFull, match="wait for compaction"):
                await delete(node, RangeDelete(9, 9))
            await write(node, [7])
            await node.shards[1].checkpoint()
            assert pending(node.shards[1]) == 1, "of times that no file has nothing waits"
            await delete(node, RangeDelete(9, 9))
        assert DELETES_MAX > 100

    in_a_loop(work)


def test_l23_there_is_an_end_to_what_waiting_deletes_take() -> None:
    """Values of tags, and the names of the files that are waited for, stand in each Checkpoint and each answer."""

    async def work() -> None:
        node = await opened(MemoryStore())
        host = node.table("t0").tags[0].id
        long = RangeDelete(tags=(TagValues(host, tuple(f"h{n}" for n in range(1000))),))
        with mock.patch("storage.admission.WAITING_BYTES_MAX", 50_000):
            for _ in range(2):  # the second time they are pending, not in the tail
                await delete(node, long)
                before = node.shards[1].state.tail_bytes
                await delete(node, long)
                assert node.shards[1].state.tail_bytes - before > 20_000
                with pytest.raises(LogBacklogFull, match="wait for compaction"):
                    await delete(node, long)
                await write(node, [1])
                await node.shards[1].checkpoint()
                assert await merge(node) == [True]
            for n in range(5):
                await write(node, [n])
                await node.shards[1].checkpoint()
        with mock.patch("storage.admission.WAITING_BYTES_MAX", 2_000):
            for n in range(3):
                await delete(node, RangeDelete(n, 4))
                await node.shards[1].checkpoint()
            with pytest.raises(LogBacklogFull, match="wait for compaction"):
                await delete(node, RangeDelete(1, 4))
        with pytest.raises(RequestTooLarge):
            await delete(node, RangeDelete(tags=(TagValues(host, ("x" * DELETE_BYTES_MAX,)),)))

    in_a_loop(work)


def test_l23_deletes_travel_in_messages_of_a_bounded_size() -> None:
    values = tuple(f"host{n:012d}" for n in range(10_000))
    batch = TailBatch(1, NO_ROWS, RangeDelete(tags=(TagValues(2, values),)))
    groups = list(chunks([TailRows(1, 1, n, batch) for n in range(20)]))
    assert max(sum(len(message.delete) for message in rows_to(group)) for group in groups) < 2 * CHUNK_BYTES
    assert sum(map(len, groups)) == 20
