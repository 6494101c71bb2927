"""One process's storage without a process: the real Catalog and Shards over any store, clients that keep a
ledger, and the check that what stands is what was promised.

`SimExecutor` runs the store's calls on the event loop's own thread, in an order drawn from a seed: with it a run
is the same every time. Crash, fault and two-owner tests drive this; `tests.integration.storage.test_shard` uses
threads and a local disk instead.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from storage.budget import MemoryBudget
from storage.catalog import Catalog
from storage.catalogstate import CatalogLimits
from storage.changes import ColumnSpec, EnsureTable
from storage.errors import OutcomeUnknown, StorageError
from storage.frames import WriteId
from storage.keys import route
from storage.log import Identity
from storage.logeffects import ListObjects, ReadObject
from storage.logreader import LogReader, ReadPhase
from storage.schema import Role, Table, TypeKind
from storage.shard import Append, Shard, ShardLimits
from storage.shardstate import ShardState
from storage.store import CATALOG_LOG, log_folder, object_name, open_identity

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from storage.objects import ObjectStore
    from storage.schema import DataFile, PartitionSnapshot

LIMITS = ShardLimits(checkpoint_seconds=3600.0, grace_seconds=0.0)
BUDGET_BYTES = 64 * 1024 * 1024
DATABASE = "db"
_WRITERS = itertools.count(1)


class SimExecutor(Executor):
    """Calls wait until the loop comes by, and then one of them, drawn by the seed, is made.

    While it is ``asleep`` none is made, as in a process that was paused.
    """

    def __init__(self, seed: int) -> None:
        self.asleep = False
        self._random = random.Random(seed)
        self._waiting: list[tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._waiting.append((future, fn, args))
        if not self.asleep:
            asyncio.get_running_loop().call_soon(self._one)
        return future

    def wake(self) -> None:
        self.asleep = False
        for _ in self._waiting:
            asyncio.get_running_loop().call_soon(self._one)

    def _one(self) -> None:
        if self.asleep or not self._waiting:
            return
        future, function, arguments = self._waiting.pop(self._random.randrange(len(self._waiting)))
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(*arguments))
        except BaseException as error:  # noqa: BLE001  as every executor does
            future.set_exception(error)


@dataclass
class Part:
    """One shard part of a write, as its client remembers it (LOG L7, L8). ``keys`` are its rows' numbers."""

    log_id: int
    append: Append
    keys: tuple[int, ...]


@dataclass
class Ledger:
    """What clients were told of each row."""

    acknowledged: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    unanswered: list[Part] = field(default_factory=list)
    altered: list[str] = field(default_factory=list)
    numbers: int = 0

    def unknown(self) -> set[int]:
        return {key for part in self.unanswered for key in part.keys}

    def take(self, count: int) -> tuple[int, ...]:
        self.numbers += count
        return tuple(range(self.numbers - count + 1, self.numbers + 1))


class StorageNode:
    """The Catalog and every shard of a store, owned by one pretended process."""

    def __init__(
        self, store: ObjectStore, executor: Executor, limits: ShardLimits = LIMITS, name: bytes = b"n"
    ) -> None:
        self.store = store
        self.executor = executor
        self.limits = limits
        self.name = name * 16
        self.budget = MemoryBudget(BUDGET_BYTES)
        self.shards: dict[int, Shard] = {}
        self.fatal: list[BaseException] = []
        self.writes = 0
        self.writer = next(_WRITERS).to_bytes(15, "little")
        self.catalog: Catalog

    async def open(self, logs: Sequence[int] = (1, 2), partitions: int = 2) -> None:
        loop = asyncio.get_running_loop()
        identity = await loop.run_in_executor(self.executor, open_identity, self.store)
        store_id = identity.id.bytes
        limits = CatalogLimits(partitions_default=partitions)
        self.catalog = Catalog(
            self.store, Identity(store_id, CATALOG_LOG, self.name), self.executor, limits, self.fatal.append
        )
        await self.catalog.open(logs)
        for log_id in self.catalog.current.logs:
            self.shards[log_id] = Shard(
                self.store, Identity(store_id, log_id, self.name), self.catalog.table_by_id, self.budget,
                self.executor, self.limits, self.fatal.append,
            )  # fmt: skip
        opened = await asyncio.gather(*(shard.open() for shard in self.shards.values()), return_exceptions=True)
        for error in opened:
            if error is not None:
                raise error

    async def close(self) -> None:
        await asyncio.gather(*(shard.close() for shard in self.shards.values()))
        await self.catalog.close()

    # -- clients -----------------------------------------------------------------------------------------

    async def ensure(self, name: str, ledger: Ledger, fields: Sequence[str] = ("n",)) -> None:
        """Create the table or add columns; remember it when it was acknowledged."""
        columns = [ColumnSpec("host", Role.TAG, TypeKind.STRING)]
        columns += [ColumnSpec(f, Role.FIELD, TypeKind.INT64) for f in fields]
        await self.catalog.alter([EnsureTable(DATABASE, name, columns)])
        ledger.altered.extend(f"{name}.{f}" for f in fields)

    def table(self, name: str) -> Table:
        table = self.catalog.current.table(DATABASE, name)
        assert table is not None
        return table

    def parts(self, name: str, keys: Sequence[int], writer: int) -> list[Part]:
        """The parts of a write, everything about them fixed (L8): one row for each key."""
        table = self.table(name)
        values = {"time": pa.array(keys, pa.timestamp("ns"))}
        values["host"] = pa.array([f"h{k % 5}" for k in keys]).dictionary_encode()
        values["n"] = pa.array(keys, pa.int64())
        parts = []
        for partition, rows in route(table, pa.RecordBatch.from_pydict(values)):
            self.writes += 1
            write_id = WriteId(1, self.writer + bytes([writer]), 0, self.writes, 1)
            born = self.shards[partition.log_id].state.position
            append = Append(table, partition.id, rows, write_id, born)
            parts.append(Part(partition.log_id, append, tuple(rows.column("n").to_pylist())))
        return parts

    async def write(self, name: str, count: int, ledger: Ledger, writer: int = 0) -> None:
        """One write of ``count`` rows; the ledger keeps what each shard said of its part (L17)."""
        parts = self.parts(name, ledger.take(count), writer)
        ledger.unanswered.extend(parts)
        by_log: dict[int, list[Part]] = {}
        for part in parts:
            by_log.setdefault(part.log_id, []).append(part)
        await asyncio.gather(*(self.send(log_id, mine, ledger) for log_id, mine in by_log.items()))

    async def send(self, log_id: int, parts: Sequence[Part], ledger: Ledger, tries: int = 1) -> None:
        """One try. What is refused on a later try is still unknown (L7)."""
        try:
            await self.shards[log_id].append([part.append for part in parts])
        except OutcomeUnknown:
            return
        except StorageError as error:
            if not error.retriable:
                raise
            if tries == 1:
                settle(ledger, parts, ledger.failed)
            return
        settle(ledger, parts, ledger.acknowledged)

    async def retry(self, part: Part, ledger: Ledger) -> None:
        """The same part under the same id, as a client does whose answer was lost."""
        await self.send(part.log_id, [part], ledger, tries=2)


def settle(ledger: Ledger, parts: Sequence[Part], outcome: set[int]) -> None:
    for part in parts:
        ledger.unanswered.remove(part)
        outcome.update(part.keys)


# -- what stands -------------------------------------------------------------------------------------------


def rows_of(store: ObjectStore, snapshots: Sequence[PartitionSnapshot]) -> list[int]:
    """The row numbers of a table's partitions, from files and tail; every file is there (L16) and in its range."""
    found: list[int] = []
    for part in snapshots:
        check_layers(part)
        for file in part.files:
            rows = file_rows(store, file)
            assert rows.num_rows == file.rows
            offsets = rows.column("_runnel_offset").to_pylist()
            assert len(set(offsets)) == len(offsets)
            assert file.offset_low <= min(offsets)
            assert max(offsets) == file.offset_high
            found.extend(rows.column("n").to_pylist())
        for batch in part.tail:
            found.extend(batch.rows.column("n").to_pylist())
    return found


def file_rows(store: ObjectStore, file: DataFile) -> pa.Table:
    """The rows of a file, or of a slice of a bundle."""
    rows = pq.read_table(pa.BufferReader(store.get(file.path)))
    if not file.is_slice:
        return rows
    mine = (pc.field("_runnel_table") == file.table_id) & (pc.field("_runnel_partition") == file.partition)
    return rows.filter(mine)


def check_layers(part: PartitionSnapshot) -> None:
    """L22, L24: each offset stands in one file or in the tail, none is missing."""
    following = 0
    for file in part.files:
        assert file.offset_low == following, f"offset {following} is missing or there twice"
        following = file.offset_high + 1
    for batch in part.tail:
        assert batch.first_offset == following, f"offset {following} is missing or there twice"
        following += batch.rows.num_rows


def check_rows(found: Sequence[int], ledger: Ledger) -> None:
    """Promise 1: every acknowledged row once, none of a write that failed, none that nobody sent."""
    assert len(set(found)) == len(found), f"there twice: {sorted(k for k in set(found) if found.count(k) > 1)}"
    missing = ledger.acknowledged - set(found)
    assert not missing, f"acknowledged and not there: {sorted(missing)}"
    assert not ledger.failed & set(found), f"failed and there: {sorted(ledger.failed & set(found))}"
    assert set(found) <= ledger.acknowledged | ledger.unknown(), "rows that nobody sent"


async def read_all(node: StorageNode) -> list[int]:
    """Every row number of every table, through the owner (L13, L14)."""
    found: list[int] = []
    await asyncio.gather(*(shard.prove() for shard in node.shards.values()))
    for table in node.catalog.current.tables(DATABASE):
        snapshots = [part for shard in node.shards.values() for part in shard.snapshot(table)]
        found.extend(rows_of(node.store, snapshots))
    return found


def read_store(store: ObjectStore, node: StorageNode) -> list[int]:
    """The same from the store alone, as a query node without an owner reads it (L10, L15)."""
    found: list[int] = []
    for log_id, shard in node.shards.items():
        state = store_snapshot(store, shard.identity.store_id, log_id, node.catalog.table_by_id)
        for table in node.catalog.current.tables(DATABASE):
            found.extend(rows_of(store, list(state.snapshot(table))))
    return found


def store_snapshot(
    store: ObjectStore, store_id: bytes, log_id: int, tables: Callable[[int], Table | None]
) -> ShardState:
    """Drive a `LogReader` to its end."""
    reader = LogReader(store_id, log_id, lambda: ShardState(store_id, log_id, tables))
    folder = log_folder(log_id)
    while effects := reader.take():
        for effect in effects:
            if isinstance(effect, ListObjects):
                reader.listed([int(entry.name) for entry in store.list(folder)])
            elif isinstance(effect, ReadObject):
                reader.read(effect.sequence, store.get(f"{folder}/{object_name(effect.sequence)}"))
            else:
                reader.part_read(effect.path, store.get(effect.path))
    assert reader.phase is ReadPhase.DONE, reader.error
    assert isinstance(reader.state, ShardState)
    return reader.state


async def check_node(node: StorageNode, ledger: Ledger) -> None:
    """Everything that must hold of a node that has opened what another left behind."""
    found = await read_all(node)
    check_rows(found, ledger)
    assert sorted(found) == sorted(read_store(node.store, node))
    for name in ledger.altered:
        table, column = name.split(".")
        assert column in node.table(table).by_name, f"acknowledged and not there: column {name}"
    for shard in node.shards.values():
        for part in shard.state.parts:
            assert node.store.exists(part.path)
    assert node.fatal == []


def other_limits(**changes: Any) -> ShardLimits:
    return replace(LIMITS, **changes)
