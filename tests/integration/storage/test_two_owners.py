"""Two owners of one Log: the one that was replaced never acknowledges again, answers no read, and neither deletes
what the other needs (LOG L9, L11, L12, L13, L15, L19, L20)."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from storage.errors import Fenced, OutcomeUnknown, ShardClosed, StorageError
from storage.frames import ObjectKind, decode_object
from storage.store import data_folder, epoch_of, open_identity, parts_folder
from tests.harness.crashruns import CrashStore
from tests.harness.storagenode import (
    Ledger,
    SimExecutor,
    StorageNode,
    check_node,
    check_rows,
    other_limits,
    read_all,
)
from tests.harness.stores import Fault, FaultStore, MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


def in_a_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        await work()

    with (
        mock.patch("storage.logdriver.pause_seconds", return_value=0.0),
        mock.patch("storage.readdriver.pause_seconds", return_value=0.0),
    ):
        asyncio.run(main())


async def owner(store: Any, name: bytes, seed: int = 1, **limits: Any) -> StorageNode:
    node = StorageNode(store, SimExecutor(seed), other_limits(**limits), name=name)
    await node.open(logs=[1], partitions=1)
    return node


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def fenced(work: Coroutine[Any, Any, Any]) -> bool:
    try:
        await work
    except (Fenced, ShardClosed, OutcomeUnknown):
        return True
    return False


def test_l12_the_zombie_never_acknowledges_again() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        zombie = await owner(inner, b"a")
        await zombie.ensure("t0", ledger)
        await zombie.write("t0", 3, ledger)
        successor = await owner(inner, b"b")
        before = set(ledger.acknowledged)
        for _ in range(5):
            await zombie.write("t0", 3, ledger)
        assert ledger.acknowledged == before
        assert len(ledger.failed) == 15, "it was never sent or met the open: certainly not written"
        ended = zombie.shards[1].driver.closed.result()
        assert isinstance(ended, Fenced)
        assert ended.retriable
        await successor.write("t0", 3, ledger)
        await check_node(successor, ledger)

    in_a_loop(work)


def test_l12_the_zombies_catalog_changes_nothing_any_more() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        zombie = await owner(inner, b"a")
        successor = await owner(inner, b"b")
        for name in ("x", "y"):
            with pytest.raises(StorageError) as caught:
                await zombie.ensure(name, Ledger())
            assert isinstance(caught.value, (Fenced, ShardClosed))
        with pytest.raises(StorageError):
            await zombie.catalog.prove()
        await successor.ensure("x", ledger)
        assert [t.name for t in successor.catalog.current.tables("db")] == ["x"]

    in_a_loop(work)


def test_l13_a_read_of_the_zombie_fails_even_if_it_does_not_know_yet() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        zombie = await owner(inner, b"a")
        await zombie.ensure("t0", ledger)
        await zombie.shards[1].prove()
        successor = await owner(inner, b"b")
        await successor.write("t0", 3, ledger)
        assert not zombie.shards[1].driver.closed.done(), "nobody told it"
        for _ in range(2):
            with pytest.raises(StorageError) as caught:
                await zombie.shards[1].prove()
            assert caught.value.retriable
        assert not zombie.shards[1].driver.core.is_owner

    in_a_loop(work)


def test_l11_the_open_that_fences_is_never_collected() -> None:
    """However far the successor's checkpoints go, the zombie's next create meets its successor's open."""

    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        zombie = await owner(inner, b"a")
        await zombie.ensure("t0", ledger)
        await zombie.write("t0", 1, ledger)
        successor = await owner(inner, b"b")
        for _ in range(4):
            await successor.write("t0", 2, ledger)
            await successor.shards[1].checkpoint()
        kinds = {
            int(o.name): decode_object(inner.get(f"logs/1/{o.name}"), o.name).header.kind for o in inner.list("logs/1")
        }
        opens = [sequence for sequence, kind in kinds.items() if kind is ObjectKind.OPEN]
        assert opens == [1, 3]
        assert all(s > successor.shards[1].state.k or s in opens for s in kinds), "L19: the rest was collected"
        await zombie.write("t0", 1, ledger)
        assert len(ledger.failed) == 1
        await check_node(successor, ledger)

    in_a_loop(work)


def test_l6_what_was_in_flight_is_unknown_and_its_late_landing_harms_nobody() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        store = FaultStore(inner)
        zombie = await owner(store, b"a")
        await zombie.ensure("t0", ledger)
        store.arm(Fault.LATE, match="logs/1/*")
        writing = asyncio.ensure_future(zombie.write("t0", 4, ledger))
        while not store.late:
            await asyncio.sleep(0)
        sleeper = zombie.executor
        assert isinstance(sleeper, SimExecutor)
        sleeper.asleep = True
        successor = await owner(inner, b"b")
        store.land_late()
        sleeper.wake()
        await writing
        assert len(ledger.unknown()) == 4, "sent once without an answer: it may stand"
        await check_node(successor, ledger)
        (part,) = list(ledger.unanswered)
        await successor.retry(part, ledger)
        assert len(ledger.acknowledged) == 4
        await check_node(successor, ledger)

    in_a_loop(work)


def files(store: MemoryStore) -> set[str]:
    return {f"{f}/{o.name}" for f in (data_folder(1), parts_folder(1)) for o in store.list_all(f)}


def test_l20_neither_deletes_the_others_files() -> None:
    """The zombie's sweep spares a higher epoch's files, also before they are committed; the successor's takes the
    zombie's orphans, but only a grace after it first saw them, and never what a Checkpoint names."""

    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        slow = FaultStore(inner)
        zombie = await owner(slow, b"a")
        await zombie.ensure("t0", ledger)
        with mock.patch("storage.shardstate.FILES_INLINE_MAX", 0):
            await zombie.write("t0", 3, ledger)
            await zombie.shards[1].checkpoint()
            committed = files(inner)
            assert len(committed) == 2, "a DataFile and a part"
            await zombie.write("t0", 3, ledger)
            successor = await owner(inner, b"b", grace_seconds=3600.0)
            assert await fenced(zombie.shards[1].checkpoint())
            orphans = files(inner) - committed
            assert len(orphans) == 2
            await successor.write("t0", 3, ledger)
            uncommitted = await successor_files(successor, inner)
            zombies = zombie.shards[1]
            with mock.patch.object(type(zombies.driver.core), "is_owner", True):  # a zombie that does not know
                await zombies.sweep()
            assert files(inner) >= committed | uncommitted, "L20: a higher epoch's files are spared"
            assert all(epoch_of(path) == zombies.driver.core.epoch for path in orphans - files(inner))
        await successor.shards[1].sweep()
        await check_node(successor, ledger)
        with pytest.raises(ShardClosed):
            await zombie.shards[1].sweep()  # L19: only the owner collects

    in_a_loop(work)


async def successor_files(node: StorageNode, inner: MemoryStore) -> set[str]:
    """Start its checkpoint and stop looking when its DataFile is there and nothing names it yet."""
    before = files(inner)
    task = asyncio.ensure_future(node.shards[1].checkpoint())
    while not (new := files(inner) - before):
        await asyncio.sleep(0)
    assert not task.done()
    return new


@pytest.mark.parametrize("grace", [0.0, 0.05, 3600.0])
def test_l20_orphans_go_a_grace_after_they_were_first_seen(grace: float) -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        zombie = await owner(inner, b"a")
        await zombie.ensure("t0", ledger)
        await zombie.write("t0", 3, ledger)
        successor = await owner(inner, b"b", grace_seconds=grace)
        assert await fenced(zombie.shards[1].checkpoint())
        foreign = f"{data_folder(1)}/1/1/notes.txt"
        later = f"{data_folder(1)}/1/1/{10**9}-{'0' * 32}.parquet"
        inner.create(foreign, b"somebody's")
        inner.create(later, b"of a higher epoch")
        gone = await successor.shards[1].sweep()
        assert gone == (1 if grace == 0.0 else 0)
        await asyncio.sleep(min(grace, 0.06))
        assert await successor.shards[1].sweep() == (1 if grace == 0.05 else 0)
        assert {foreign, later} <= files(inner)
        await successor.shards[1].checkpoint()
        assert await successor.shards[1].sweep() == 0
        await check_node(successor, ledger)

    in_a_loop(work)


def test_l20_a_file_that_is_named_again_is_not_ripe() -> None:
    """What a sweep saw once and a Checkpoint names later is no garbage."""

    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        node = await owner(inner, b"a", grace_seconds=0.0)
        await node.ensure("t0", ledger)
        shard = node.shards[1]
        await node.write("t0", 3, ledger)
        await shard.checkpoint()
        (path,) = files(inner)
        shard._unlisted[path] = -1e9  # as if an earlier sweep had seen it
        assert await shard.sweep() == 0
        assert shard._unlisted == {}
        await check_node(node, ledger)

    in_a_loop(work)


@pytest.mark.parametrize("seed", range(40))
def test_l9_to_l13_two_owners_in_any_order(seed: int) -> None:
    """Both write, checkpoint, sweep and read as if they were alone; every row stays accounted for.

    A drawn number of calls of each is made while the other sleeps, and answers are lost on the way.
    """

    async def work() -> None:
        inner, ledger, draw = MemoryStore(), Ledger(), random.Random(seed)
        open_identity(inner)
        rates = {Fault.LOST_ANSWER: 0.08, Fault.LATE: 0.08, Fault.LOST_REQUEST: 0.04}
        stores = [CrashStore(inner, seed=seed + i, rates=rates) for i in range(2)]
        zombie = await owner(stores[0], b"a", seed)
        await zombie.ensure("t0", ledger)
        old = asyncio.ensure_future(busy(zombie, ledger, random.Random(seed + 1)))
        await turns(draw.randrange(120))
        successor = await owner(stores[1], b"b", seed + 2)
        new = asyncio.ensure_future(busy(successor, ledger, random.Random(seed + 3)))
        await asyncio.gather(old, new)
        for store in stores:
            store.land_late()
        await successor.shards[1].prove()
        assert not zombie.shards[1].driver.core.is_owner or await fenced(zombie.shards[1].prove())
        stores[1].rates = {}
        check_rows(await read_all(successor), ledger)
        third = await owner(inner, b"c", seed)
        await check_node(third, ledger)
        for part in list(ledger.unanswered):
            await third.retry(part, ledger)
        await check_node(third, ledger)

    in_a_loop(work)


async def busy(node: StorageNode, ledger: Ledger, draw: random.Random) -> None:
    """Everything an owner does, until it is told that it is none."""
    shard = node.shards[1]
    for _ in range(12):
        chore = draw.randrange(6)
        try:
            if chore < 3:
                await node.write("t0", draw.randrange(1, 4), ledger, writer=2)
            elif chore == 3:
                await shard.checkpoint()
            elif chore == 4:
                await shard.sweep()
            else:
                mine = set(ledger.acknowledged)
                await shard.prove()
                check_rows(await read_all(node), Ledger(mine, ledger.failed, ledger.unanswered))
        except StorageError:
            await turns(draw.randrange(9))
