"""Following the Catalog by listing it, whatever its owners, Checkpoints, collections and the store do meanwhile
(LOG L10, L28, L29, L30)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from storage.catalogfollower import CatalogFollower
from storage.changes import CreateDatabase, DropTable, EnsureTable
from storage.errors import CatalogBehind, LogDamaged, SnapshotTooOld, StorageError, StoreUnavailable
from storage.store import open_identity
from tests.harness.storagenode import Ledger, SimExecutor, StorageNode
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.integration.storage.test_two_owners import in_a_loop, owner, turns

if TYPE_CHECKING:
    from storage.catalogstate import CatalogSnapshot
    from storage.objects import ObjectStore

CATALOG = "logs/0"


def follower_at(store: ObjectStore, seed: int = 3, **options: Any) -> CatalogFollower:
    return CatalogFollower(
        store, open_identity(store).id.bytes, SimExecutor(seed), **{"poll_seconds": 3600.0, **options}
    )


def same(found: CatalogSnapshot, node: StorageNode) -> bool:
    now = node.catalog.current
    return (found.revision, found.tables_by_id, found.databases_by_id, found.logs, found.next_table) == (
        now.revision, now.tables_by_id, now.databases_by_id, now.logs, now.next_table,
    )  # fmt: skip


def test_l29_one_listing_when_nothing_is_new_and_only_new_objects_are_read() -> None:
    async def work() -> None:
        inner = MemoryStore()
        node = await owner(inner, b"a")
        store = FaultStore(inner)
        async with follower_at(store) as follower:
            assert same(follower.current, node)
            for _ in range(3):
                store.calls.clear()
                assert same(await follower.refresh(), node)
                assert (store.calls["list"], store.calls["get"]) == (1, 0)
            for name in ("x", "y", "z"):
                await node.ensure(name, Ledger())
                store.calls.clear()
                assert same(await follower.refresh(), node)
                assert (store.calls["list"], store.calls["get"]) == (2, 1)
            assert follower.position == node.catalog.driver.core.next_seq - 1
            assert follower.table_by_id(node.table("y").id) == node.table("y")
        await node.close()

    in_a_loop(work)


def test_an_empty_store_has_an_empty_catalog() -> None:
    async def work() -> None:
        inner = MemoryStore()
        async with follower_at(inner) as follower:
            assert (follower.current.revision, follower.position) == (0, 0)
            node = await owner(inner, b"a")
            assert same(await follower.refresh(), node)
            await node.close()

    in_a_loop(work)


def test_l29_callers_share_the_next_listing_and_never_one_in_transit() -> None:
    async def work() -> None:
        inner = MemoryStore()
        node = await owner(inner, b"a")
        executor = SimExecutor(1)
        store = FaultStore(inner)
        follower = CatalogFollower(store, open_identity(inner).id.bytes, executor, poll_seconds=3600)
        await follower.start()
        store.calls.clear()
        executor.asleep = True
        first = [asyncio.create_task(follower.refresh()) for _ in range(5)]
        await turns(5)  # their listing is in transit now: whoever comes later shares the next
        await node.ensure("x", Ledger())
        later = [asyncio.create_task(follower.refresh()) for _ in range(5)]
        await turns(5)
        assert len(executor._waiting) == 1
        executor.wake()
        await asyncio.gather(*first)
        assert {same(found, node) for found in await asyncio.gather(*later)} == {True}
        assert store.calls["list"] <= 4
        first[0].cancel()
        await follower.close()
        await node.close()

    in_a_loop(work)


def test_l28_a_follower_whose_place_was_collected_finds_the_news() -> None:
    """Who probed the next sequence would wait for ever: it has come and gone."""

    async def work() -> None:
        inner = MemoryStore()
        node = await owner(inner, b"a")
        async with follower_at(inner) as follower:
            behind = follower.position
            for round_ in range(3):
                for name in ("x", "y", "z"):
                    await node.ensure(f"{name}{round_}", Ledger())
                await node.catalog.checkpoint()
            assert not inner.exists(f"{CATALOG}/{behind + 1:020d}")
            assert same(await follower.refresh(), node)
            await node.ensure("last", Ledger())
            assert same(await follower.refresh(), node)
        await node.close()

    in_a_loop(work)


def test_l10_l28_the_open_of_a_sleeper_where_an_object_was_collected_is_not_followed() -> None:
    """A node that slept through it all creates its open right above what the follower knows."""

    async def work() -> None:
        inner = MemoryStore()
        node = await owner(inner, b"a")
        async with follower_at(inner) as follower:
            known = follower.position
            old = inner.get(f"{CATALOG}/{1:020d}")
            await node.ensure("x", Ledger())
            await node.ensure("y", Ledger())
            await node.catalog.checkpoint()
            at = f"{CATALOG}/{known + 1:020d}"
            assert not inner.exists(at)
            inner.objects[at] = old  # whatever it is: it is not what stood there
            assert same(await follower.refresh(), node)
        await node.close()

    in_a_loop(work)


@pytest.mark.parametrize("seed", range(15))
def test_l28_l29_a_refresh_shows_all_that_was_decided_before_it(seed: int) -> None:
    async def work() -> None:
        inner = MemoryStore()
        nodes = [await owner(inner, b"a", seed)]
        rates = {Fault.UNAVAILABLE: 0.05} if seed % 2 else {}
        follower = follower_at(FaultStore(inner, seed=seed, rates=rates), seed)
        await follower.start()
        history: dict[int, Any] = {}
        failed: list[StorageError | None] = []
        done = asyncio.Event()

        async def change() -> None:
            for number in range(60):
                catalog = nodes[-1].catalog
                await catalog.alter([EnsureTable("db", f"t{number % 7}")])
                history[catalog.current.revision] = catalog.current.tables_by_id
                if number % 5 == 4:
                    begun = await catalog.alter([DropTable("db", f"t{number % 7}")])
                    history[catalog.current.revision] = catalog.current.tables_by_id
                    table = begun.table("db", f"t{number % 7}")
                    assert table is not None
                    await catalog.finish_drop(table.id)
                    history[catalog.current.revision] = catalog.current.tables_by_id
                if number % 9 == 8:
                    await catalog.checkpoint()
                if number % 20 == 19:
                    nodes.append(await owner(inner, bytes([98 + len(nodes)]), seed + number))
            done.set()

        async def look() -> int:
            count = 0
            while not done.is_set():
                before = nodes[-1].catalog.current.revision
                try:
                    found = await follower.refresh()
                except StoreUnavailable:
                    failed.append(follower.error)
                    continue
                assert found.revision >= before
                if found.revision in history:
                    assert found.tables_by_id == history[found.revision]
                count += 1
            return count

        history[nodes[0].catalog.current.revision] = nodes[0].catalog.current.tables_by_id
        _, *counts = await asyncio.gather(change(), look(), look())
        assert min(counts) > 5
        assert None not in failed
        assert same(await follower.wait_revision(nodes[-1].catalog.current.revision, 60), nodes[-1])
        await follower.close()
        for node in nodes:
            await node.close()

    in_a_loop(work)


def test_l30_whoever_was_told_of_a_revision_waits_for_it() -> None:
    async def work() -> None:
        inner = MemoryStore()
        node = await owner(inner, b"a")
        async with follower_at(inner) as follower:
            await node.ensure("x", Ledger())
            revision = node.catalog.current.revision
            assert same(await follower.wait_revision(revision, 5), node)
            assert await follower.wait_revision(1, 0) is follower.current
            with mock.patch("storage.catalogfollower.pause_seconds", return_value=0.0):
                waiting = asyncio.create_task(follower.wait_revision(revision + 2, 30))
                await turns(40)
                await node.ensure("y", Ledger())
                await turns(40)
                assert not waiting.done()
                await node.ensure("z", Ledger())
                assert same(await waiting, node)
            with pytest.raises(CatalogBehind, match=f"{revision + 9} did not show in 0.05 s") as caught:
                await follower.wait_revision(revision + 9, 0.05)
            assert caught.value.retriable
        await node.close()

    in_a_loop(work)


def test_a_hint_is_looked_into_once() -> None:
    async def work() -> None:
        inner = MemoryStore()
        node = await owner(inner, b"a")
        store = FaultStore(inner)
        async with follower_at(store) as follower:
            store.calls.clear()
            follower.hint(follower.current.revision)
            await turns(20)
            assert store.calls["list"] == 0, "that is no news"
            await node.ensure("x", Ledger())
            for _ in range(5):
                follower.hint(node.catalog.current.revision)
            await turns(60)
            assert same(follower.current, node)
            store.calls.clear()
            for _ in range(5):
                follower.hint(999)
                await turns(20)
            assert store.calls["list"] == 1, "who claims what is not there does not keep us busy"
        await node.close()

    in_a_loop(work)


def test_it_lists_by_itself_and_reports_what_goes_wrong() -> None:
    async def work() -> None:
        inner = MemoryStore()
        node = await owner(inner, b"a")
        store = FaultStore(inner)
        reported: list[StorageError] = []
        async with follower_at(store, poll_seconds=0.001, on_error=reported.append) as follower:
            await node.ensure("x", Ledger())
            await follows(follower, node)
            store.arm(Fault.UNAVAILABLE, "list", times=6)
            while not reported:
                await asyncio.sleep(0.001)
            assert isinstance(reported[0], StoreUnavailable)
            await node.ensure("y", Ledger())
            await follows(follower, node)
            assert follower.error is None
        await node.close()
        with pytest.raises(StoreUnavailable):
            await follower.refresh()
        follower.hint(999)
        await turns(20)
        assert len(asyncio.all_tasks()) == 1

    async def follows(follower: CatalogFollower, node: StorageNode) -> None:
        async with asyncio.timeout(20):
            while follower.current.revision < node.catalog.current.revision:
                await asyncio.sleep(0.001)

    in_a_loop(work)


def test_what_was_known_stays_known_when_the_store_fails_or_the_catalog_is_damaged() -> None:
    async def work() -> None:
        inner = MemoryStore()
        node = await owner(inner, b"a")
        await node.ensure("x", Ledger())
        store = FaultStore(inner)
        async with follower_at(store) as follower:
            store.arm(Fault.UNAVAILABLE, "list", times=6)
            with pytest.raises(StoreUnavailable):
                await follower.refresh()
            assert same(follower.current, node)
            before = follower.current
            await node.catalog.alter([CreateDatabase("more")])
            newest = max(path for path in inner.objects if path.startswith(CATALOG))
            whole = inner.objects[newest]
            inner.objects[newest] = whole[:-9]
            with pytest.raises(LogDamaged, match="log 0"):
                await follower.refresh()
            assert follower.current is before
            inner.objects[newest] = whole
            assert same(await follower.refresh(), node)
            store.arm(Fault.STALE_LISTING, "list", times=3)
            assert same(await follower.refresh(), node)
            for path in [path for path in inner.objects if path.startswith(CATALOG)]:
                inner.delete(path)
            with pytest.raises(SnapshotTooOld):
                await follower.refresh()
            assert same(follower.current, node)
        await node.close()

    in_a_loop(work)


def test_closing_tells_who_waits() -> None:
    async def work() -> None:
        inner = MemoryStore()
        executor = SimExecutor(1)
        follower = CatalogFollower(inner, open_identity(inner).id.bytes, executor)
        await follower.start()
        executor.asleep = True
        waiting = [asyncio.create_task(follower.refresh()) for _ in range(2)]
        await turns(3)
        waiting.append(asyncio.create_task(follower.refresh()))
        await turns(3)
        await follower.close()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(error, StoreUnavailable) for error in found), found
        dead = FaultStore(inner)
        dead.arm(Fault.UNAVAILABLE, "list", times=100)
        with pytest.raises(StoreUnavailable):
            await follower_at(dead).start()
        await turns(5)
        assert len(asyncio.all_tasks()) == 1

    in_a_loop(work)


def test_closing_tells_who_waits_for_a_listing_that_has_not_begun() -> None:
    """They hear an error that they can answer with; a CancelledError would end whatever they are."""

    async def work() -> None:
        inner = MemoryStore()
        node = await owner(inner, b"a")
        follower = follower_at(inner)
        await follower.start()
        await turns(3)
        waiting = asyncio.create_task(follower.refresh())
        await asyncio.sleep(0)  # it has asked for a listing, whose task has not had a turn
        await follower.close()
        with pytest.raises(StoreUnavailable):
            await waiting
        await node.close()

    in_a_loop(work)


def test_l30_a_shard_that_opens_catches_up_with_a_follower() -> None:
    """The rows in the Log are of a schema that the follower had not seen."""

    async def work() -> None:
        inner, ledger = MemoryStore(), Ledger()
        node = await owner(inner, b"a")
        async with follower_at(inner) as follower:
            await node.ensure("t0", ledger)
            await node.write("t0", 3, ledger)
            shard = node.shards[1]
            successor = type(shard)(
                inner, shard.identity, follower.table_by_id, node.budget, SimExecutor(2), shard.limits,
                node.fatal.append, revision=lambda: follower.current.revision, catch_up=follower.refresh,
            )  # fmt: skip
            await successor.open()
            assert successor.revision == node.catalog.current.revision
            (part,) = successor.snapshot(node.table("t0"))
            assert sum(batch.rows.num_rows for batch in part.tail) == 3
            await successor.close()
        await node.close()

    in_a_loop(work)
