"""What an ownership tells of itself: its Placement, whom it lost to, what it caught up with before it replayed, and
that an open which fails leaves nothing running (LOG L12, L30)."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING, Any

import pytest

from storage.budget import MemoryBudget
from storage.catalog import Catalog
from storage.catalogstate import CatalogLimits
from storage.checkpoint import Section, decode_sections
from storage.errors import Fenced, LogBacklogFull, ShardClosed, StorageError, StoreFull, StoreUnavailable
from storage.frames import ObjectKind, decode_object
from storage.log import Identity
from storage.shard import Shard
from storage.store import CATALOG_LOG, open_identity
from tests.harness.storagenode import LIMITS, Ledger, SimExecutor, other_limits
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.integration.storage.test_two_owners import in_a_loop, owner, turns

if TYPE_CHECKING:
    from storage.objects import ObjectStore


def shard_at(store: ObjectStore, name: bytes, seed: int = 1, **hooks: Any) -> Shard:
    identity = Identity(open_identity(store).id.bytes, 1, name * 16)
    return Shard(
        store, identity, lambda _: None, MemoryBudget(2**20), SimExecutor(seed), LIMITS, lambda _: None, **hooks
    )


async def only_me() -> None:
    """Nothing but the test itself runs on the loop, after a few turns."""
    await turns(20)
    assert len(asyncio.all_tasks()) == 1


def test_l12_the_open_carries_the_placement_and_the_fenced_owner_is_told_whom_it_lost_to() -> None:
    async def work() -> None:
        inner = MemoryStore()
        zombie, successor = shard_at(inner, b"a"), shard_at(inner, b"b", 2)
        await zombie.open(placement=(7, 1))
        assert not zombie.closed.done()
        await successor.open(placement=(7, 2))
        with pytest.raises(Fenced):
            await zombie.prove()
        assert isinstance(await asyncio.wait_for(zombie.closed, 5), Fenced)
        header = zombie.successor
        assert header is not None
        assert (header.kind, header.node, header.epoch) == (ObjectKind.OPEN, b"b" * 16, 2)
        assert (header.placement_epoch, header.placement_number) == (7, 2)
        opened = decode_object(inner.get(f"logs/1/{1:020d}"), "").header
        assert (opened.placement_epoch, opened.placement_number, opened.node) == (7, 1, b"a" * 16)
        await zombie.close()
        await successor.close()
        assert isinstance(successor.closed.result(), ShardClosed)
        assert successor.successor is None
        await only_me()

    in_a_loop(work)


def test_l12_an_owner_whose_create_meets_the_open_knows_its_successor() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        zombie = await owner(inner, b"a")
        await zombie.ensure("t0", ledger)
        successor = await owner(inner, b"b")
        await zombie.write("t0", 3, ledger)
        await zombie.shards[1].closed
        assert zombie.shards[1].successor is not None
        assert zombie.shards[1].successor.node == b"b" * 16
        await zombie.close()
        await successor.close()

    in_a_loop(work)


@pytest.mark.parametrize("answer", ["silent", "closed at once"])
def test_l12_who_cannot_be_told_its_successor_still_ends(answer: str) -> None:
    async def work() -> None:
        inner = MemoryStore()
        store = FaultStore(inner)
        zombie, successor = shard_at(store, b"a"), shard_at(inner, b"b", 2)
        await zombie.open()
        await successor.open()
        store.arm(Fault.UNAVAILABLE, "get", times=100)
        with pytest.raises(Fenced):
            await zombie.prove()
        if answer == "closed at once":
            await zombie.close()
        assert isinstance(await asyncio.wait_for(zombie.closed, 5), Fenced)
        assert zombie.successor is None
        await zombie.close()
        await successor.close()
        await only_me()

    in_a_loop(work)


def test_l30_the_catalog_is_caught_up_with_after_the_open_stands_and_before_replay() -> None:
    async def work() -> None:
        inner = MemoryStore()
        seen: list[tuple[int, int]] = []

        async def catch_up() -> None:
            await asyncio.sleep(0)
            seen.append((len(inner.list("logs/1")), shard.state.k))

        first = shard_at(inner, b"a")
        await first.open()
        shard = shard_at(inner, b"b", catch_up=catch_up)
        await shard.open()
        assert seen == [(2, 0)], "once, when our open stands"
        await first.close()
        await shard.close()

    in_a_loop(work)


def test_l30_an_owner_that_cannot_catch_up_does_not_open() -> None:
    async def work() -> None:
        async def catch_up() -> None:
            raise StoreUnavailable("no Catalog")

        shard = shard_at(MemoryStore(), b"a", catch_up=catch_up)
        with pytest.raises(StoreUnavailable, match="no Catalog"):
            await shard.open()
        assert isinstance(await shard.closed, ShardClosed)
        await only_me()

    in_a_loop(work)


def test_l30_a_checkpoint_says_the_revision_it_rests_on() -> None:
    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        node = await owner(inner, b"a")
        await node.ensure("t0", ledger)
        node.shards[1]._revision = lambda: node.catalog.current.revision
        await node.write("t0", 3, ledger)
        assert node.shards[1].revision == 2
        await node.shards[1].checkpoint()
        newest = max(int(o.name) for o in inner.list("logs/1"))
        checkpoint = decode_object(inner.get(f"logs/1/{newest:020d}"), "")
        (meta,) = decode_sections(checkpoint.entries, "")[Section.META]
        assert meta["revision"] == 2
        later = await owner(inner, b"b")
        assert later.shards[1].revision == 2, "it comes back"
        await node.close()
        await later.close()

    in_a_loop(work)


@pytest.mark.parametrize("seed", range(4))
def test_an_open_that_fails_or_is_cancelled_leaves_nothing_running(seed: int) -> None:
    async def work() -> None:
        inner = MemoryStore()
        store = FaultStore(inner)
        identity = Identity(open_identity(inner).id.bytes, CATALOG_LOG, b"a" * 16)
        catalog = Catalog(store, identity, SimExecutor(seed), CatalogLimits(), lambda _: None)
        match = f"*{seed % 2 + 1:020d}"  # the open itself, or the first record
        if seed < 2:
            store.arm(Fault.FULL, match=match)
            with pytest.raises(StoreFull):
                await catalog.open([1])
        else:
            opening = asyncio.create_task(catalog.open([1]))
            await turns(4 * seed)
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        assert isinstance(await catalog.closed, StorageError)
        await only_me()
        again = Catalog(inner, identity, SimExecutor(seed), CatalogLimits(), lambda _: None)
        await again.open([1, 2], placement=(3, 0))
        assert again.current.logs == (1, 2) or seed >= 2
        await again.close()

    in_a_loop(work)


def test_a_checkpoint_that_nobody_waits_for_any_more_ends_without_a_complaint() -> None:
    """The loop would log it as an error that was never retrieved: whenever a shard is lost in one."""

    async def work() -> None:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, complaint: complaints.append(complaint))
        store, ledger = MemoryStore(), Ledger()
        node = await owner(store, b"a")
        await node.ensure("t", ledger)
        await node.write("t", 1, ledger)
        shard = node.shards[1]
        waiting = asyncio.create_task(shard.checkpoint())
        while not shard.driver.core.busy:  # until the Checkpoint itself is under way
            await asyncio.sleep(0)
        assert isinstance(node.executor, SimExecutor)
        node.executor.asleep = True
        waiting.cancel()
        successor = await owner(store, b"b", seed=2)
        node.executor.wake()
        assert isinstance(await shard.closed, Fenced)
        await turns(5)
        assert waiting.cancelled()
        del waiting  # which holds what it waited for
        gc.collect()
        assert complaints == []
        await node.close()
        await successor.close()

    in_a_loop(work)


def test_a_shard_that_is_gone_has_no_backlog_to_wait_for() -> None:
    """Whoever waited for its checkpoint goes to the next owner: "full" would be the answer of the client."""

    async def work() -> None:
        node, ledger = await owner(MemoryStore(), b"a"), Ledger()
        await node.ensure("t", ledger)
        await node.write("t", 1, ledger)
        shard = node.shards[1]
        shard.limits = other_limits(checkpoint_objects=0)
        part = node.parts("t", [7], 0)[0].append
        with pytest.raises(LogBacklogFull):
            await shard.append([part])
        await shard.close()
        with pytest.raises(ShardClosed):
            await shard.append([part])
        await node.close()

    in_a_loop(work)
