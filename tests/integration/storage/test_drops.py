"""DROP in a cluster (LOG L30, L31): "dropping" in the Catalog, a record in each Log, "dropped"; whatever stops it on
its way, somebody goes on, and no reader or writer is told what is not so."""

from __future__ import annotations

import asyncio
import itertools
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from unittest import mock

import pyarrow as pa
import pytest

from storage.appends import Append
from storage.catalogfollower import CatalogFollower
from storage.catalogstate import CatalogLimits
from storage.changes import Change, ColumnSpec, CreateDatabase, DropDatabase, DropTable, EnsureTable
from storage.errors import NoSuchTable, ShardClosed, StorageError, TableDropping
from storage.frames import EntryKind, WriteId, decode_object
from storage.log import Identity
from storage.schema import Role, Table, TypeKind
from storage.store import CATALOG_LOG
from tests.harness.crashruns import CrashStore
from tests.harness.storagenode import DATABASE, Ledger, SimExecutor, StorageNode, read_all, rows_of
from tests.harness.stores import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from storage.catalog import Catalog
    from storage.catalogstate import CatalogSnapshot
    from storage.objects import ObjectStore

HOST = ColumnSpec("host", Role.TAG, TypeKind.STRING)
N = ColumnSpec("n", Role.FIELD, TypeKind.INT64)


def in_a_loop(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        await work()

    with (
        mock.patch("storage.logdriver.pause_seconds", return_value=0.0),
        mock.patch("storage.readdriver.pause_seconds", return_value=0.0),
    ):
        asyncio.run(main())


class Dropper(StorageNode):
    """A node that tells its shards; ``silent`` are Logs whose shards cannot be told."""

    silent: set[int]
    told: list[int]

    async def open(self, logs: Any = (1, 2), partitions: int = 2) -> None:
        self.silent, self.told = set(), []
        await super().open(logs, partitions)

    async def tell(self, log_id: int, table: Table) -> None:
        self.told.append(log_id)
        if log_id in self.silent:
            raise ShardClosed(f"shard {log_id} is not open")
        await self.shards[log_id].drop(table.id, table.dropping)

    async def carry_out(self, *changes: Change) -> None:
        await self.catalog.carry_out(changes, self.tell)

    def records(self, kind: EntryKind, log_id: int) -> list[int]:
        """The sequences of the objects in which entries of this kind stand."""
        return [
            int(o.name)
            for o in self.store.list(f"logs/{log_id}")
            for e in decode_object(self.store.get(f"logs/{log_id}/{o.name}"), o.name).entries
            if e.kind == kind
        ]


async def dropper(store: ObjectStore, name: bytes = b"a", seed: int = 1) -> Dropper:
    node = Dropper(store, SimExecutor(seed), name=name)
    await node.open()
    return node


def bound(node: StorageNode, name: str = "t0") -> Table | None:
    return node.catalog.current.table(DATABASE, name)


def test_l31_a_drop_is_three_steps() -> None:
    async def work() -> None:
        ledger, node = Ledger(), await dropper(MemoryStore())
        await node.ensure("t0", ledger)
        await node.write("t0", 20, ledger)
        old = node.table("t0")
        revision = node.catalog.current.revision
        await node.carry_out(DropTable(DATABASE, "t0"))
        assert bound(node) is None
        assert node.catalog.current.revision == revision + 2
        assert {len(node.records(EntryKind.DROP, log_id)) for log_id in (1, 2)} == {1}
        for shard in node.shards.values():
            assert shard.state.drops == {old.id: revision + 1}
            assert shard.snapshot(old) == []
            assert shard.state.revision >= revision + 1
        with pytest.raises(NoSuchTable):
            await node.carry_out(DropTable(DATABASE, "t0"))
        await node.ensure("t0", ledger)
        assert node.table("t0").id != old.id
        fresh = Ledger()
        await node.write("t0", 7, fresh)
        assert set(await read_all(node)) == fresh.acknowledged
        await node.close()

    in_a_loop(work)


def test_l31_a_drop_record_is_written_once_and_outlives_restarts_and_checkpoints() -> None:
    async def work() -> None:
        ledger, store = Ledger(), MemoryStore()
        node = await dropper(store)
        await node.ensure("t0", ledger)
        await node.write("t0", 20, ledger)
        shard, table = node.shards[1], node.table("t0")
        for _ in range(3):
            await shard.drop(table.id, 9)
        assert len(node.records(EntryKind.DROP, 1)) == 1
        (part, *_) = [p for p in node.parts("t0", range(100, 120), writer=1) if p.log_id == 1]
        for checkpoint in (False, True):
            with pytest.raises(NoSuchTable):
                await node.shards[1].append([part.append])
            if checkpoint:
                await node.shards[1].checkpoint()
            await node.close()
            node = await dropper(store)
            await node.shards[1].drop(table.id, 9)
            assert node.shards[1].state.drops == {table.id: 9}
        await node.close()
        with pytest.raises(ShardClosed):
            await node.shards[1].drop(77, 9)

    in_a_loop(work)


def test_l31_while_a_shard_cannot_be_told_the_name_stays_bound() -> None:
    async def work() -> None:
        ledger, store = Ledger(), MemoryStore()
        node = await dropper(store)
        await node.ensure("t0", ledger)
        await node.write("t0", 20, ledger)
        node.silent = {2}
        with pytest.raises(TableDropping, match="shard 2 is not open") as caught:
            await node.carry_out(DropTable(DATABASE, "t0"))
        assert caught.value.retriable
        table = node.table("t0")
        assert node.catalog.dropping() == [table]
        assert node.shards[1].snapshot(table) == []
        assert len(rows_of(store, node.shards[2].snapshot(table))) > 0, "each shard decides by its own Log"
        for change in (EnsureTable(DATABASE, "t0", [HOST]), DropTable(DATABASE, "t0")):
            with pytest.raises(TableDropping):
                await node.carry_out(change)
        await node.ensure("other", ledger)
        await node.close()
        successor = await dropper(store, b"b")
        assert successor.catalog.dropping() == [table]
        await successor.catalog.finish_drops(successor.tell)
        assert (bound(successor), successor.catalog.dropping()) == (None, [])
        assert len(successor.records(EntryKind.DROP, 1)) == 1, "it had its record"
        await successor.close()

    in_a_loop(work)


def test_l31_create_waits_for_a_drop_that_somebody_else_began() -> None:
    async def work() -> None:
        ledger, node = Ledger(), await dropper(MemoryStore())
        for name in ("t0", "t1"):
            await node.ensure(name, ledger)
        old = node.table("t0").id
        await node.catalog.propose([DropTable(DATABASE, "t0")])  # and its client went away
        await node.catalog.propose([DropTable(DATABASE, "t1")])
        node.silent = {2}
        with pytest.raises(TableDropping):
            await node.carry_out(EnsureTable(DATABASE, "t0", [HOST]))
        node.silent = set()
        await node.carry_out(EnsureTable(DATABASE, "t0", [HOST]))
        assert node.table("t0").id != old
        assert [t.name for t in node.catalog.dropping()] == ["t1"], "nobody asked for that one"
        await node.close()

    in_a_loop(work)


def test_l31_a_database_goes_with_its_tables() -> None:
    async def work() -> None:
        ledger, store = Ledger(), MemoryStore()
        node = await dropper(store)
        for name in ("t0", "t1"):
            await node.ensure(name, ledger)
            await node.write(name, 20, ledger)
        ids = {t.id for t in node.catalog.current.tables(DATABASE)}
        node.silent = {1}
        with pytest.raises(TableDropping):
            await node.carry_out(DropDatabase(DATABASE))
        assert node.catalog.current.database(DATABASE) is not None
        with pytest.raises(TableDropping):
            await node.carry_out(CreateDatabase(DATABASE))
        node.silent = set()
        await node.carry_out(CreateDatabase(DATABASE), EnsureTable(DATABASE, "t0", [HOST, N]))
        assert all(set(shard.state.drops) == ids for shard in node.shards.values())
        assert [t.id in ids for t in node.catalog.current.tables(DATABASE)] == [False]
        assert await read_all(node) == []
        await node.close()

    in_a_loop(work)


def test_callers_share_one_attempt_and_one_that_goes_away_does_not_end_it() -> None:
    async def work() -> None:
        ledger, node = Ledger(), await dropper(MemoryStore())
        await node.ensure("t0", ledger)
        first = asyncio.ensure_future(node.carry_out(DropTable(DATABASE, "t0")))
        others = [asyncio.ensure_future(node.carry_out(DropTable(DATABASE, "t0"))) for _ in range(5)]
        while not node.told:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(*others)
        assert first.cancelled()
        assert sorted(node.told) == [1, 2]
        assert bound(node) is None
        await node.close()

    in_a_loop(work)


def test_closing_does_not_wait_for_a_shard_that_never_answers() -> None:
    async def work() -> None:
        ledger, node = Ledger(), await dropper(MemoryStore())
        await node.ensure("t0", ledger)
        asked = asyncio.Event()

        async def never(log_id: int, table: Table) -> None:
            asked.set()
            await asyncio.Event().wait()

        dropping = asyncio.ensure_future(node.catalog.carry_out([DropTable(DATABASE, "t0")], never))
        await asked.wait()
        await asyncio.wait_for(node.close(), 5)
        with pytest.raises(TableDropping):
            await dropping

    in_a_loop(work)


# -- a crash at every step ---------------------------------------------------------------------------------


async def life(node: Dropper, ledger: Ledger, told: list[str]) -> None:
    """A table that is filled, dropped, made again and filled; ``told`` is what was acknowledged."""
    await node.open()
    await node.ensure("t0", ledger)
    await node.write("t0", 10, ledger)
    told.append("first rows")
    await node.carry_out(DropTable(DATABASE, "t0"))
    told.append("dropped")
    await node.ensure("t0", ledger)
    await node.write("t0", 10, ledger)
    told.append("second rows")


@pytest.mark.parametrize("block", range(3))
def test_l31_a_crash_at_every_step_leaves_a_table_or_none(block: int) -> None:
    """Whoever opens the Catalog goes on; rows from before the drop come back only if it had not begun."""

    async def one(crash_at: int) -> bool:
        inner, ledger, told = MemoryStore(), Ledger(), list[str]()
        store = CrashStore(inner, seed=crash_at, crash_at=crash_at)
        node = Dropper(store, SimExecutor(crash_at), name=b"a")
        living = asyncio.ensure_future(life(node, ledger, told))
        dead = asyncio.ensure_future(store.crashed.wait())
        await asyncio.wait([living, dead], return_when=asyncio.FIRST_COMPLETED)
        finished = living.done() and not store.crashed.is_set()
        living.cancel()
        dead.cancel()
        await asyncio.gather(living, dead, return_exceptions=True)
        successor = await dropper(inner, b"b")
        began = bool(successor.catalog.dropping())
        await successor.catalog.finish_drops(successor.tell)
        assert successor.catalog.dropping() == []
        found = set(await read_all(successor))
        first, second = set(range(1, 11)), set(range(11, 21))
        if "dropped" in told or began:
            assert not found & first, "dropped rows are back"
        elif "first rows" in told and not any(shard.state.drops for shard in successor.shards.values()):
            assert found & first == first
        if "second rows" in told:
            assert found == second
        assert not found & second or "dropped" in told
        await successor.ensure("t0", Ledger())
        await successor.close()
        return finished

    async def work() -> None:
        for crash_at in itertools.count(1 + block, 3):
            if await one(crash_at):
                assert crash_at > 20
                return

    in_a_loop(work)


# -- gateways at different Revisions, readers, drops and creates -------------------------------------------


@dataclass
class Write:
    """A row in each shard. Times are steps of the simulation; ``acked`` is None until it is acknowledged."""

    number: int
    begun: int
    acked: int | None = None


@dataclass
class Drop:
    """``over``: it was acknowledged, or somebody was told that its table is not there: no later row is lost by it."""

    begun: int
    acked: int | None = None
    over: int | None = None
    targets: set[int] = field(default_factory=set)


@dataclass
class World:
    """Two shards, controllers that replace each other, gateways whose Catalogs are older or newer."""

    seed: int
    store: MemoryStore = field(default_factory=MemoryStore)
    writes: list[Write] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    reached: set[str] = field(default_factory=set)
    clock: int = 0
    numbers: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def now(self) -> int:
        self.clock += 1
        return self.clock

    async def pause(self, most: int = 30) -> None:
        for _ in range(self.random.randrange(most)):
            await asyncio.sleep(0)

    async def run(self) -> None:
        self.node = await dropper(self.store, b"a", self.seed)
        self.store_id = self.node.shards[1].identity.store_id
        self.controller: Catalog = self.node.catalog
        self.owner = CatalogFollower(self.store, self.store_id, SimExecutor(self.seed + 9))  # of the shards
        for shard in self.node.shards.values():
            shard.tables = shard.state._tables = self.owner.table_by_id
        self.gateways = [CatalogFollower(self.store, self.store_id, SimExecutor(self.seed + i)) for i in range(3)]
        await self.controller.alter([EnsureTable(DATABASE, "t", [HOST, N])])
        clients = [self.writer(i) for i in range(3)] + [self.reader(i) for i in range(2)]
        await asyncio.gather(*clients, self.dropper_client(), self.take_overs())
        await self.node.close()

    async def take_overs(self) -> None:
        """A new controller opens the Catalog, and goes on with every drop."""
        for number in range(2):
            await self.pause(400)
            identity = Identity(self.store_id, CATALOG_LOG, bytes([100 + number]) * 16)
            limits = CatalogLimits(partitions_default=2)
            fresh = type(self.controller)(self.store, identity, SimExecutor(number), limits, lambda _: None)
            await fresh.open(())
            self.controller = fresh
            if fresh.dropping():
                self.reached.add("a drop taken over")
            await fresh.finish_drops(self.send)

    async def send(self, log_id: int, table: Table) -> None:
        await self.pause()
        await self.node.shards[log_id].drop(table.id, table.dropping)

    async def alter(self, change: Change, drop: Drop | None = None) -> None:
        """As a gateway does: to whoever is the controller, again while it can help."""
        while True:
            target = self.controller.current.table(DATABASE, "t")
            if drop is not None and target is not None:
                drop.targets.add(target.id)
            try:
                await self.controller.carry_out([change], self.send)
            except StorageError as error:
                if not error.retriable:
                    raise
                await self.pause()
            else:
                return

    def observe(self, catalog: CatalogSnapshot) -> None:
        """A reader or a writer has acted on a Catalog that no longer names what a drop was to drop."""
        for drop in self.drops:
            known = [catalog.tables_by_id[table] for table in drop.targets if table in catalog.tables_by_id]
            if drop.over is None and any(table.deleted for table in known):
                drop.over = self.now()

    async def writer(self, number: int) -> None:
        gateway = self.gateways[number]
        for _ in range(5):
            await self.pause(60)
            self.numbers += 1
            write = Write(self.numbers, self.now())
            self.writes.append(write)
            while not await self.try_write(gateway, write):
                self.reached.add("refused by a shard")
                await gateway.refresh()
            write.acked = self.now()

    async def try_write(self, gateway: CatalogFollower, write: Write) -> bool:
        """All parts under new ids; False when a shard refuses the table id (L8)."""
        table = gateway.current.table(DATABASE, "t") or (await gateway.refresh()).table(DATABASE, "t")
        while table is None or table.dropping:
            await self.alter(EnsureTable(DATABASE, "t", [HOST, N]))
            table = (await gateway.refresh()).table(DATABASE, "t")
            self.observe(gateway.current)
        for partition in table.partitions:
            await self.pause()
            self.numbers += 1
            columns = {"time": pa.array([write.number], pa.timestamp("ns")), "n": pa.array([write.number], pa.int64())}
            rows = pa.RecordBatch.from_pydict(columns)
            append = Append(table, partition.id, rows, WriteId(1, b"w" * 16, 0, self.numbers, 1))
            await self.owner.wait_revision(gateway.current.revision, 60)  # L30: who is behind catches up first
            try:
                await self.node.shards[partition.log_id].append([append])
            except NoSuchTable:
                return False
        return True

    async def dropper_client(self) -> None:
        for _ in range(3):
            await self.pause(300)
            drop = Drop(self.now())
            self.drops.append(drop)
            try:
                await self.alter(DropTable(DATABASE, "t"), drop)
            except NoSuchTable:
                self.reached.add("nothing to drop")
            drop.acked = self.now()
            drop.over = drop.over or drop.acked

    async def reader(self, number: int) -> None:
        gateway = CatalogFollower(self.store, self.store_id, SimExecutor(number))
        for _ in range(12):
            await self.pause(60)
            begun = self.now()
            table = (await gateway.refresh()).table(DATABASE, "t")
            if table is None:
                self.observe(gateway.current)
            found: list[set[int]] = []
            for partition in () if table is None else table.partitions:
                await self.pause()
                shard = self.node.shards[partition.log_id]
                await shard.prove()
                assert table is not None
                parts = [part for part in shard.snapshot(table) if part.partition == partition.id]
                found.append(set(rows_of(self.store, parts)))
            self.judge(begun, self.now(), found)

    def judge(self, begun: int, ended: int, found: list[set[int]]) -> None:
        """L30, L31: what is missing was dropped by a DROP that had begun and was not over before the row was begun;
        what a DROP that is over has dropped does not come back."""
        everywhere = set.intersection(*found) if found else set()
        anywhere = set.union(*found) if found else set()
        for write in self.writes:
            explained = any(d.begun < ended and (d.over is None or d.over > write.begun) for d in self.drops)
            if write.acked is not None and write.acked < begun and write.number not in everywhere:
                assert explained, f"row {write.number} was acknowledged and is not there"
                self.reached.add("a dropped row is gone")
            over = any(
                d.acked is not None and d.acked < begun and write.acked is not None and write.acked < d.begun
                for d in self.drops
            )
            assert not over or write.number not in anywhere, f"row {write.number} was dropped and is back"


def test_l31_gateways_readers_drops_and_creates() -> None:
    reached: set[str] = set()
    for seed in range(40):
        world = World(seed)
        in_a_loop(world.run)
        reached |= world.reached
    assert reached >= {"refused by a shard", "a dropped row is gone", "a drop taken over", "nothing to drop"}


def free_the_name_at_once(patch: pytest.MonkeyPatch) -> None:
    """The Catalog says "dropped" before the shards know: rows are acknowledged that no reader will see."""
    from storage import catalog as module

    async def broken(self: Catalog, table: Table, send: Any) -> None:
        await self.finish_drop(table.id)
        for log_id in sorted({partition.log_id for partition in table.partitions}):
            await send(log_id, table)

    patch.setattr(module.Catalog, "_finish", broken)


def tell_nobody(patch: pytest.MonkeyPatch) -> None:
    """No drop record in any Log: whoever still has the name writes on, and is acknowledged."""
    from storage import catalog as module

    patch.setattr(module.Catalog, "_finish", lambda self, table, send: self.finish_drop(table.id))


@pytest.mark.parametrize("breach", [free_the_name_at_once, tell_nobody])
def test_l31_broken_is_found(breach: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    breach(monkeypatch)

    def search() -> None:
        for seed in range(300):
            in_a_loop(World(seed).run)

    with pytest.raises(AssertionError, match="acknowledged and is not there"):
        search()
