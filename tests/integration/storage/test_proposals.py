"""Proposals to the Catalog under write ids: a repeated one is one change, whatever was lost, forgotten or taken over
meanwhile, and no late copy does anything (LOG L7, L12, L13, L28)."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

from storage.catalog import Altered, Catalog
from storage.catalogfollower import CatalogFollower
from storage.catalogstate import CatalogLimits, CatalogState
from storage.changes import CreateDatabase, DropTable, EnsureTable
from storage.errors import AlreadyExists, Fenced, NoSuchTable, OutcomeUnknown, ShardClosed, StorageError, WriteRefused
from storage.frames import NO_WRITE_ID, WriteId
from storage.log import Identity
from storage.store import CATALOG_LOG, open_identity
from storage.writeids import RETRY_SECONDS_MAX
from tests.harness.storagenode import SimExecutor
from tests.harness.stores import Fault, FaultStore, MemoryStore
from tests.integration.storage.test_two_owners import in_a_loop

if TYPE_CHECKING:
    from storage.changes import Change
    from storage.objects import ObjectStore
    from storage.schema import Table

LOGS = tuple(range(1, 9))


async def catalog_at(
    store: ObjectStore, name: bytes = b"c", seed: int = 1, limits: CatalogLimits | None = None
) -> Catalog:
    identity = Identity(open_identity(store).id.bytes, CATALOG_LOG, name * 16)
    catalog = Catalog(store, identity, SimExecutor(seed), limits or CatalogLimits(), lambda _: None)
    await catalog.open(LOGS)
    return catalog


async def tell(log_id: int, table: Table) -> None:
    """There are no shards here that could be told of a drop."""


async def drop(catalog: Catalog, write_id: WriteId) -> Altered:
    """Drop a table to its end; returns what its proposal became (L31)."""
    altered = await catalog.propose([DropTable("db", "t")], write_id)
    await catalog.finish_drops(tell)
    return altered


def numbered(number: int) -> WriteId:
    return WriteId(1, b"g" * 16, 0, number, 1)


def test_l28_a_repeated_proposal_is_answered_with_the_first_ones_revision() -> None:
    async def work() -> None:
        store = MemoryStore()
        catalog = await catalog_at(store)
        first = await catalog.propose([EnsureTable("db", "t")], numbered(1))
        assert (first.revision, first.catalog.table("db", "t") is not None) == (2, True)
        assert first.position == catalog.driver.core.next_seq - 1
        await catalog.propose([EnsureTable("db", "u")], numbered(2), first.position)
        again, twice = await asyncio.gather(
            catalog.propose([EnsureTable("db", "t")], numbered(1)),
            catalog.propose([EnsureTable("db", "t")], numbered(1)),
        )
        assert again.revision == twice.revision == 2
        assert again.catalog.table("db", "u") is not None
        assert catalog.current.revision == 3
        await catalog.close()

    in_a_loop(work)


def test_l28_two_copies_at_once_are_one_change() -> None:
    async def work() -> None:
        catalog = await catalog_at(MemoryStore())
        change = [CreateDatabase("db")]
        copies = await asyncio.gather(*(catalog.propose(change, numbered(1)) for _ in range(5)))
        assert {copy.revision for copy in copies} == {2}
        await catalog.close()

    in_a_loop(work)


@pytest.mark.parametrize("between", ["nothing", "a checkpoint", "a take-over", "both"])
def test_l28_a_late_copy_of_drop_does_not_drop_the_next_table(between: str) -> None:
    async def work() -> None:
        store = MemoryStore()
        catalog = await catalog_at(store)
        await catalog.propose([EnsureTable("db", "t")], numbered(1))
        dropped = await drop(catalog, numbered(2))
        await catalog.propose([EnsureTable("db", "t")], numbered(3))
        if between in ("a checkpoint", "both"):
            await catalog.checkpoint()
        if between in ("a take-over", "both"):
            zombie, catalog = catalog, await catalog_at(store, b"d", 2)
            with pytest.raises((Fenced, ShardClosed)):
                await zombie.propose([CreateDatabase("x")], numbered(9))
            await zombie.close()
        assert (await catalog.propose([DropTable("db", "t")], numbered(2))).revision == dropped.revision
        await catalog.carry_out([DropTable("db", "t")], tell, numbered(2))
        assert catalog.current.table("db", "t") is not None
        await catalog.close()

    in_a_loop(work)


def test_l28_also_a_proposal_that_changed_nothing_is_remembered() -> None:
    """It was answered "so it is": a late copy must not make it so again after it was undone."""

    async def work() -> None:
        store = MemoryStore()
        catalog = await catalog_at(store)
        await catalog.propose([EnsureTable("db", "t")], numbered(1))
        nothing = await catalog.propose([EnsureTable("db", "t")], numbered(2))
        await drop(catalog, numbered(3))
        await catalog.close()
        catalog = await catalog_at(store, b"d", 2)
        assert (await catalog.propose([EnsureTable("db", "t")], numbered(2))).revision == nothing.revision
        assert catalog.current.table("db", "t") is None
        before = catalog.current.revision
        await catalog.alter([CreateDatabase("db", exist_ok=True)])
        assert catalog.current.revision == before, "without an id there is nothing to remember"
        await catalog.close()

    in_a_loop(work)


def test_l28_a_late_copy_of_a_drop_that_somebody_else_had_begun_drops_nothing() -> None:
    async def work() -> None:
        catalog = await catalog_at(MemoryStore())
        await catalog.propose([EnsureTable("db", "t")], numbered(1))
        for number in (2, 3):
            await catalog.propose([DropTable("db", "t")], numbered(number))
        await catalog.finish_drops(tell)
        await catalog.propose([EnsureTable("db", "t")], numbered(4))
        for number in (2, 3):
            await catalog.carry_out([DropTable("db", "t")], tell, numbered(number))
        assert catalog.current.table("db", "t") is not None
        await catalog.close()

    in_a_loop(work)


def test_l28_what_was_refused_for_good_is_refused_again() -> None:
    async def work() -> None:
        catalog = await catalog_at(MemoryStore())
        with pytest.raises(NoSuchTable):
            await catalog.propose([EnsureTable("db", "t"), DropTable("db", "u")], numbered(1))
        await catalog.propose([EnsureTable("db", "u")], numbered(2))
        with pytest.raises(NoSuchTable):
            await catalog.propose([EnsureTable("db", "t"), DropTable("db", "u")], numbered(1))
        assert catalog.current.table("db", "u") is not None
        with pytest.raises(AlreadyExists):
            await catalog.alter([CreateDatabase("db")])
        with mock.patch("storage.catalog.REFUSED_MAX", 2):
            for number in range(10, 15):
                with pytest.raises(AlreadyExists):
                    await catalog.propose([CreateDatabase("db")], numbered(number))
        assert len(catalog._refused) == 2
        await catalog.close()

    in_a_loop(work)


def test_l7_below_the_horizon_a_proposal_is_refused() -> None:
    async def work() -> None:
        store = MemoryStore()
        catalog = await catalog_at(store)
        first = await catalog.propose([EnsureTable("db", "t")], numbered(1))
        later = time.time_ns() + (RETRY_SECONDS_MAX + 9) * 10**9
        with mock.patch("storage.catalog.time.time_ns", return_value=later):
            await catalog.checkpoint()
        assert catalog.state.horizon == first.position
        for again in (catalog, await catalog_at(store, b"d", 2)):
            assert again.state.horizon == first.position, "it comes back with the Checkpoint"
            if again is catalog:
                with pytest.raises(WriteRefused) as caught:
                    await again.propose([EnsureTable("db", "t")], numbered(1), first.position - 1)
                assert caught.value.retriable
                await again.close()
            else:
                await again.propose([EnsureTable("db", "v")], numbered(7), first.position)
                await again.close()

    in_a_loop(work)


def test_l13_a_zombie_refuses_nothing_from_what_it_knew() -> None:
    """It does not know that the table is there by now: it must not say that it is not."""

    async def work() -> None:
        store = MemoryStore()
        zombie = await catalog_at(store)
        await zombie.alter([CreateDatabase("db")])
        catalog = await catalog_at(store, b"d", 2)
        await catalog.alter([EnsureTable("db", "t")])
        changes: list[Change] = [DropTable("db", "t")]
        for write_id in (numbered(1), NO_WRITE_ID):
            with pytest.raises((Fenced, ShardClosed)):
                await zombie.propose(changes, write_id)
        with pytest.raises((Fenced, ShardClosed)):
            await zombie.alter([CreateDatabase("db", exist_ok=True)])
        assert catalog.current.table("db", "t") is not None
        await zombie.close()
        await catalog.close()

    in_a_loop(work)


@pytest.mark.parametrize("seed", range(12))
def test_l7_l28_lost_answers_take_overs_and_late_copies(seed: int) -> None:
    """Each proposal makes a database of its own: it is there once, or its Catalog would say AlreadyExists."""

    async def work() -> None:
        draw = random.Random(seed)
        inner = MemoryStore()
        rates = {Fault.LOST_ANSWER: 0.1, Fault.LOST_REQUEST: 0.1, Fault.LATE: 0.1}
        catalogs = [await catalog_at(FaultStore(inner, seed=seed, rates=rates), b"a", seed)]
        sent: list[tuple[WriteId, list[Change], int]] = []
        revisions: dict[WriteId, int] = {}

        async def send(proposal: tuple[WriteId, list[Change], int]) -> None:
            write_id, changes, born = proposal
            try:
                altered = await draw.choice(catalogs[-2:]).propose(changes, write_id, born)
            except (Fenced, ShardClosed, OutcomeUnknown):
                return
            assert revisions.setdefault(write_id, altered.revision) == altered.revision

        for number in range(60):
            action = draw.random()
            if action < 0.1:
                store = FaultStore(inner, seed=seed + number, rates=rates)
                catalogs.append(await catalog_at(store, bytes([98 + len(catalogs)]), seed + number))
            elif action < 0.2:
                await asyncio.gather(catalogs[-1].checkpoint(), return_exceptions=True)
            elif action < 0.6 or not sent:
                sent.append((numbered(number), [CreateDatabase(f"d{number}")], catalogs[-1].state.position))
                await send(sent[-1])
            else:
                await send(draw.choice(sent))
        while {w for w, _, _ in sent} - revisions.keys():
            await asyncio.gather(*(send(p) for p in sent))
        names = {d.name for d in catalogs[-1].current.databases()}
        assert names == {f"d{w.sequence}" for w, _, _ in sent}
        last = await catalog_at(inner, b"z", seed)
        assert {w: r.first_offset for w, r in last.state.write_ids.items()} == revisions
        for catalog in (*catalogs, last):
            await catalog.close()

    in_a_loop(work)


def test_a_follower_remembers_no_write_ids() -> None:
    async def work() -> None:
        store = MemoryStore()
        catalog = await catalog_at(store)
        for number in range(3):
            await catalog.propose([CreateDatabase(f"d{number}")], numbered(number + 1))
        await catalog.checkpoint()
        await catalog.propose([CreateDatabase("more")], numbered(9))
        follower = CatalogFollower(store, open_identity(store).id.bytes, SimExecutor(1))
        await follower.start()
        state: CatalogState = follower._read.state
        assert (len(state.write_ids), state.snapshot.revision) == (0, catalog.current.revision)
        await follower.close()
        await catalog.close()

    in_a_loop(work)


def test_f21_new_tables_spread_over_the_logs_that_can_be_written() -> None:
    async def work() -> None:
        limits = CatalogLimits(partitions_default=4, closed_logs=frozenset({2, 3}))
        catalog = await catalog_at(MemoryStore(), limits=limits)
        for number in range(6):
            await catalog.propose([EnsureTable("db", f"t{number}")], numbered(number + 1))
        tables = catalog.current.tables("db")
        used = [p.log_id for table in tables for p in table.partitions]
        assert {used.count(log) for log in LOGS if log not in {2, 3}} == {4}
        assert not {2, 3} & set(used)
        for table in tables:
            assert len({p.log_id for p in table.partitions}) == len(table.partitions) == 4
            assert [p.hash_low for p in table.partitions] == [2**62 * i for i in range(4)]
            assert table.partitions[-1].hash_high == 2**64
        await catalog.close()

    in_a_loop(work)


def test_altered_is_what_its_docstring_says() -> None:
    async def work() -> None:
        catalog = await catalog_at(MemoryStore())
        answers: list[Any] = [await catalog.propose([CreateDatabase("d")], numbered(1)) for _ in range(2)]
        assert all(isinstance(answer, Altered) for answer in answers)
        assert answers[0] == answers[1]
        await catalog.close()
        with pytest.raises(StorageError):
            await catalog.propose([CreateDatabase("e")], numbered(2))

    in_a_loop(work)
