"""The Backend of one process: it owns the Catalog and every shard, and runs queries itself.

`nodes.node` enters it; doors see only `nodes.backend.Backend`. It is one node of a cluster with the network
taken out: the same Logs, write ids, proofs and snapshots, and a plain call where a cluster has gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import shutil
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self

import structlog

from engine.engine import Engine, EngineLimits
from engine.scan import SystemTable
from nodes.status import BackendStatus, DatabaseStatus, LogStatus, TableStatus
from nodes.storeoptions import s3_options
from nodes.systemtables import parquet_files
from storage.budget import MemoryBudget
from storage.catalog import Catalog
from storage.catalogstate import CatalogLimits, CatalogSnapshot
from storage.errors import (
    LogBacklogFull,
    LogDamaged,
    MemoryExhausted,
    NoSuchDatabase,
    NoSuchTable,
    OutcomeUnknown,
    ShardClosed,
    StorageError,
    StoreFull,
    StoreUnavailable,
    TableDropping,
)
from storage.frames import WriteId
from storage.keys import route
from storage.log import Identity
from storage.objects import open_store, prove_store
from storage.schema import TableSnapshot
from storage.shard import Append, Shard, ShardLimits
from storage.store import CATALOG_LOG, open_identity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from pathlib import Path

    from nodes.backend import Batch, Change, Principal, QueryRequest, QueryResult
    from nodes.settings_model import Budgets, Settings
    from storage.objects import ObjectStore
    from storage.schema import PartitionSnapshot, Table

IO_THREADS: Final = 16
"""Threads for the object store: one create for each Log may be under way, beside reads and checkpoints."""
WRITE_ID_KIND: Final = 1
"""Ids of a gateway's writes: remembered down to the horizon (FORMAT F14)."""
ROOM_SECONDS_MAX: Final = 5.0
"""How long a write waits for a checkpoint to make room, before 503."""
ROOM_POLL_SECONDS: Final = 0.02
ANSWER_SECONDS_MAX: Final = 90.0
"""How long a client waits for a store that says nothing: three times the longest request to it, by default."""
_SILENT: Final = f"the store has not answered in {ANSWER_SECONDS_MAX:.0f} seconds"
LOG_BYTES_FACTOR: Final = 4
"""A Log may grow to so many times `log.checkpoint_bytes` before appends wait: bulk loads outrun a checkpoint."""
TAILS_BYTES_MAX: Final = 256 * 2**20
"""Sorted copies of memtables that are kept for queries; never more than the memtables themselves may have."""
DISK_SPARE_BYTES: Final = 2 * 2**20
"""Of a local disk, kept free beside what the next Checkpoints need: for the Checkpoints themselves and the Catalog."""
DISK_PLENTY_BYTES: Final = 512 * 2**20
"""More than all writes under way can need: above it nothing is counted."""
SWEEP_SECONDS: Final = 300.0
"""How often files that nothing names are looked for (LOG L20)."""

log = structlog.get_logger(__name__)


class _RoomIsKept(StoreFull):
    """What is free belongs to the next Checkpoint; when that stands there may be room again."""


class EmbeddedBackend:
    """Enter it to open the store, replay and serve; leave it to let everything go."""

    def __init__(self, settings: Settings, budgets: Budgets, fail: Callable[[BaseException], None]) -> None:
        self._settings = settings
        self._fail = fail
        self._budget = MemoryBudget(budgets.memtable_bytes)
        self._query_bytes = budgets.query_bytes
        self._writer = uuid.uuid4().bytes
        self._writes = 0
        self._shards: dict[int, Shard] = {}
        self._closed_shards: dict[int, str] = {}
        self._stack = contextlib.AsyncExitStack()
        self._store: ObjectStore
        self._disk: Path | None = None
        self._catalog: Catalog
        self._engine: Engine
        self._store_id: uuid.UUID

    # -- life --------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await self._open(stack)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    async def _open(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self._settings
        executor = ThreadPoolExecutor(IO_THREADS, thread_name_prefix="store")
        stack.callback(executor.shutdown, wait=True, cancel_futures=True)
        loop = asyncio.get_running_loop()
        self._store = await loop.run_in_executor(executor, open_store, settings.store_url, s3_options(settings))
        stack.callback(self._store.close)
        probe = self._store.local_path("probe")
        self._disk = None if probe is None else probe.parent
        await loop.run_in_executor(executor, prove_store, self._store)  # L33
        identity = await loop.run_in_executor(executor, open_identity, self._store)
        self._store_id = identity.id
        node = uuid.uuid4().bytes
        limits = CatalogLimits(settings.limits.databases_max, settings.limits.tables_max, settings.limits.columns_max)
        catalog_identity = Identity(identity.id.bytes, CATALOG_LOG, node)
        self._catalog = Catalog(self._store, catalog_identity, executor, limits, self._fail)
        stack.push_async_callback(self._catalog.close)
        await self._catalog.open(range(1, settings.log.shards + 1))
        self._watch(stack, self._catalog.driver.closed, "the Catalog")
        await self._open_shards(stack, identity.id.bytes, node, executor)
        self._engine = self._new_engine()
        stack.push_async_callback(self._engine.close)
        self._start(stack, self._sweep_now_and_then())

    async def _open_shards(
        self, stack: contextlib.AsyncExitStack, store_id: bytes, node: bytes, executor: ThreadPoolExecutor
    ) -> None:
        limits = self._shard_limits()
        for log_id in self._catalog.current.logs:
            shard = Shard(
                self._store, Identity(store_id, log_id, node), self._catalog.table_by_id, self._budget, executor,
                limits, self._fail,
            )  # fmt: skip
            stack.push_async_callback(shard.close)
            self._shards[log_id] = shard
        await asyncio.gather(*(self._open_shard(stack, shard) for shard in self._shards.values()))
        closed = frozenset(self._closed_shards)
        self._catalog.limits = dataclasses.replace(self._catalog.limits, closed_logs=closed)
        try:
            await self._catalog.finish_drops(self._drop)  # L31: whoever opens the Catalog goes on with them
        except TableDropping as error:
            log.info("drop put off", reason=str(error))

    async def _open_shard(self, stack: contextlib.AsyncExitStack, shard: Shard) -> None:
        try:
            await shard.open()
        except LogDamaged as error:  # L3: that shard stays closed, others serve
            self._closed_shards[shard.log_id] = str(error)
            way_out = f"stop the node, then: runnel store skip --log {shard.log_id} --object SEQUENCE"
            log.error("a shard stays closed", shard=shard.log_id, reason=str(error), to_give_up_the_object=way_out)
            return
        self._watch(stack, shard.driver.closed, f"shard {shard.log_id}")

    def _shard_limits(self) -> ShardLimits:
        settings = self._settings.log
        return ShardLimits(
            checkpoint_bytes=settings.checkpoint_bytes,
            checkpoint_seconds=settings.checkpoint_age,
            checkpoint_objects=settings.checkpoint_objects,
            log_bytes=LOG_BYTES_FACTOR * settings.checkpoint_bytes,
            grace_seconds=settings.collect_grace,
            group_min_interval_seconds=settings.group_min_interval,
            replay_bytes_max=min(
                2 * settings.checkpoint_bytes, self._budget.bytes_max // (2 * len(self._catalog.current.logs))
            ),
        )

    def _new_engine(self) -> Engine:
        settings = self._settings
        spill = settings.spill_dir
        shutil.rmtree(spill, ignore_errors=True)
        spill.mkdir(parents=True, exist_ok=True)
        limits = EngineLimits(
            memory_bytes=self._query_bytes,
            spill_folder=spill,
            spill_bytes_max=settings.query.spill_bytes_max,
            query_seconds=settings.query.timeout,
            target_partitions=settings.target_partitions,
            queries_max=settings.query.queries_max,
            tails_bytes_max=min(TAILS_BYTES_MAX, self._budget.bytes_max),
        )
        return Engine(self._store.url, limits, s3_options(settings))

    def _start(self, stack: contextlib.AsyncExitStack, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        stack.push_async_callback(_cancel, task)

    def _watch(self, stack: contextlib.AsyncExitStack, closed: asyncio.Future[StorageError], what: str) -> None:
        """L12: one process without a cluster ends when it is fenced: someone else runs on this store."""

        def ended(future: asyncio.Future[StorageError]) -> None:
            if not future.cancelled() and not isinstance(future.result(), ShardClosed):
                error = future.result()
                log.error("ownership ended", what=what, reason=str(error))
                self._fail(error)

        closed.add_done_callback(ended)
        stack.callback(closed.remove_done_callback, ended)

    async def _sweep_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            for shard in self._open_ones():
                try:
                    await shard.sweep()
                except StorageError as error:
                    log.info("sweep put off", shard=shard.log_id, reason=str(error))

    def _open_ones(self) -> list[Shard]:
        return [s for s in self._shards.values() if s.log_id not in self._closed_shards]

    def _shard(self, log_id: int) -> Shard:
        reason = self._closed_shards.get(log_id)
        if reason is not None:
            raise ShardClosed(f"shard {log_id} is closed: {reason}")
        return self._shards[log_id]

    # -- Backend -----------------------------------------------------------------------------------------

    @property
    def catalog(self) -> CatalogSnapshot:
        return self._catalog.current

    @property
    def store_id(self) -> str:
        return str(self._store_id)

    async def refresh(self) -> CatalogSnapshot:
        """The Catalog, proved to be the newest (L29)."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return await self._catalog.prove()
        except TimeoutError:
            raise StoreUnavailable(f"the Catalog: {_SILENT}; try again") from None

    async def alter(self, changes: Sequence[Change], principal: Principal) -> CatalogSnapshot:
        """Apply changes; durable when it returns (L4)."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return (await self._catalog.carry_out(changes, self._drop)).catalog
        except TimeoutError:
            raise OutcomeUnknown(f"the Catalog: {_SILENT}; the change may stand") from None

    async def _drop(self, log_id: int, table: Table) -> None:
        """L31: the drop record in one Log."""
        await self._shard(log_id).drop(table.id, table.dropping)

    async def write(self, batches: Sequence[Batch], principal: Principal) -> None:
        """Split by partition and append to each Log, at once and atomic per shard (L8, L17)."""
        parts: dict[int, list[Append]] = defaultdict(list)
        for batch in batches:
            for partition, rows in route(batch.table, batch.rows, batch.series):
                self._writes += 1
                write_id = WriteId(WRITE_ID_KIND, self._writer, 0, self._writes, 1)
                born = self._shards[partition.log_id].state.position
                parts[partition.log_id].append(Append(batch.table, partition.id, rows, write_id, born))
        try:
            if len(parts) == 1:
                ((log_id, appends),) = parts.items()
                await self._append_to(log_id, appends)
            else:
                await _all(*(self._append_to(log_id, appends) for log_id, appends in parts.items()))
        except NoSuchTable:  # L31: a drop is under way; when it is done the name is free, and the door writes anew
            await self._catalog.finish_drops(self._drop, {batch.table.id for batch in batches})
            raise
        self._relieve()

    async def _append_to(self, log_id: int, appends: Sequence[Append]) -> None:
        """Append to one Log within a bounded time. A closed shard refuses its own part only (L3)."""
        shard = self._shard(log_id)
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                await self._append(shard, appends)
        except TimeoutError:
            raise OutcomeUnknown(f"shard {log_id}: {_SILENT}; the write may stand") from None

    async def _append(self, shard: Shard, appends: Sequence[Append]) -> None:
        """Append; while a checkpoint makes room, wait a bounded time before the client is told to come back (L23).

        Nothing was sent when room was missing, so trying again is the first try (L7).
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + ROOM_SECONDS_MAX
        while True:
            try:
                self._check_disk(appends)
                await shard.append(appends)
            except (LogBacklogFull, MemoryExhausted, _RoomIsKept):
                if loop.time() >= deadline:
                    raise
                self._relieve()
                await asyncio.sleep(ROOM_POLL_SECONDS)
            else:
                return

    def _check_disk(self, appends: Sequence[Append]) -> None:
        """L23: appends leave so much of a local disk free that the Checkpoint of what is in the Logs still fits.

        A DataFile is smaller than the objects that it stands for. Without this the Log could fill the disk, and
        the Checkpoint that would free it could never be written.
        """
        if self._disk is None:
            return
        found = os.statvfs(self._disk)
        free = found.f_bavail * found.f_frsize
        pending = sum(shard.state.log_bytes_above_k for shard in self._open_ones())
        if free >= pending + DISK_PLENTY_BYTES:
            return
        incoming = sum(append.rows.nbytes for append in appends)
        if free >= pending + 2 * incoming + DISK_SPARE_BYTES:  # twice: in the Log, and in the file that follows
            return
        if not pending:
            raise StoreFull(f"{self._store.url}: no space left for new rows ({free} bytes free)")
        for shard in self._open_ones():
            shard.request_checkpoint()
        raise _RoomIsKept(
            f"{self._store.url}: no space left for new rows: the {free} bytes that are free are kept for a checkpoint, "
            "which is under way; free some space or try again"
        )

    def _relieve(self) -> None:
        """When half of the memory for rows is used, the shard that holds most makes room (L23)."""
        if self._budget.used > self._budget.bytes_max // 2:
            max(self._open_ones(), key=lambda shard: shard.state.tail_bytes).request_checkpoint()

    async def query(self, request: QueryRequest, principal: Principal) -> QueryResult:
        """Plan and start one statement over one snapshot of each table (L14)."""
        catalog = await self.refresh()
        if catalog.database(request.database) is None:
            raise NoSuchDatabase(f"database not found: {request.database}")
        return await self._engine.query(
            request.text,
            database=request.database,
            revision=catalog.revision,
            tables=catalog.tables(request.database),
            source=self,
            params=request.params,
            timeout_seconds=request.timeout_seconds,
            system=self._system_tables(catalog, request.database),
        )

    # -- SnapshotSource ----------------------------------------------------------------------------------

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        """One snapshot per table, each partition proved current (L13, L14)."""
        shards = {p.log_id: self._shard(p.log_id) for table in tables for p in table.partitions}
        await self._record_cutoffs(tables, shards)
        await asyncio.gather(*(shard.prove() for shard in shards.values()))
        return [self._table_snapshot(table, shards) for table in tables]

    def _table_snapshot(self, table: Table, shards: dict[int, Shard]) -> TableSnapshot:
        newest = self._catalog.table_by_id(table.id) or table
        logs = sorted({p.log_id for p in newest.partitions})
        partitions: list[PartitionSnapshot] = []
        for log_id in logs:
            partitions.extend(shards[log_id].snapshot(newest))
        return TableSnapshot(newest, tuple(partitions), self._cutoff(newest, [shards[log_id] for log_id in logs]))

    def _cutoff(self, table: Table, shards: Sequence[Shard]) -> int | None:
        """The recorded cut-off (L36); none once the period was cleared, or rows acknowledged since were never seen."""
        database = self._catalog.current.databases_by_id[table.database_id]
        if database.retention_ns is None:
            return None
        found = [shard.cutoff_ns(database.id, database.retention_ns) for shard in shards]
        return max((cutoff for cutoff in found if cutoff is not None), default=None)

    async def _record_cutoffs(self, tables: Sequence[Table], shards: dict[int, Shard]) -> None:
        catalog = self._catalog.current
        for table in tables:
            database = catalog.databases_by_id[table.database_id]
            if database.retention_ns is not None:
                ids = frozenset(t.id for t in catalog.tables(database.name))
                logs = {p.log_id for p in table.partitions}
                await asyncio.gather(*(shards[i].record_cutoff(database.id, ids, database.retention_ns) for i in logs))

    def _system_tables(self, catalog: CatalogSnapshot, database: str) -> list[SystemTable]:
        def files() -> list[tuple[Table, PartitionSnapshot]]:
            return [
                (table, part)
                for table in catalog.tables(database)
                for shard in self._open_ones()
                for part in shard.snapshot(table)
            ]

        return [SystemTable("parquet_files", lambda: parquet_files(files()))]

    # -- for the node ------------------------------------------------------------------------------------

    async def checkpoint(self) -> None:
        """Checkpoint every shard and the Catalog."""
        await asyncio.gather(*(shard.checkpoint() for shard in self._open_ones()))
        await self._catalog.shutdown()

    def status(self) -> BackendStatus:
        """What this process holds, without I/O."""
        catalog = self._catalog.current
        return BackendStatus(
            store_id=self.store_id,
            catalog_revision=catalog.revision,
            memtable_bytes=self._budget.used,
            databases=[
                DatabaseStatus(
                    name=d.name,
                    retention_ns=d.retention_ns,
                    tables=[self._table_status(t) for t in catalog.tables(d.name)],
                )
                for d in catalog.databases()
            ],
            logs=[self._catalog_status(), *(self._log_status(shard) for shard in self._shards.values())],
        )

    def _table_status(self, table: Table) -> TableStatus:
        parts = [part for shard in self._open_ones() for part in shard.snapshot(table)]
        files = [file for part in parts for file in part.files]
        tail = sum(batch.rows.num_rows for part in parts for batch in part.tail)
        return TableStatus(
            name=table.name,
            columns=len(table.columns),
            partitions=len(table.partitions),
            files=len(files),
            file_bytes=sum(f.bytes for f in files),
            rows=sum(f.rows for f in files) + tail,
        )

    def _catalog_status(self) -> LogStatus:
        core, state = self._catalog.driver.core, self._catalog.state
        return LogStatus(
            id=CATALOG_LOG, name="catalog", state=core.phase.value, epoch=core.epoch, sequence=core.next_seq - 1,
            covered=state.k, checkpoint_sequence=core.checkpoint_seq, bytes_above_checkpoint=0,
            objects_above_checkpoint=state.objects_above_k,
        )  # fmt: skip

    def _log_status(self, shard: Shard) -> LogStatus:
        core, state = shard.driver.core, shard.state
        return LogStatus(
            id=shard.log_id, name=f"shard {shard.log_id}", state=core.phase.value, epoch=core.epoch,
            sequence=core.next_seq - 1, covered=state.k, checkpoint_sequence=state.checkpoint_seq,
            bytes_above_checkpoint=state.log_bytes_above_k, objects_above_checkpoint=state.objects_above_k,
        )  # fmt: skip


async def _all(*work: Awaitable[object]) -> None:
    """Run all to their end, then raise the error that says most: what may stand must not be called failed (L6, L17)."""
    results = await asyncio.gather(*work, return_exceptions=True)
    errors = [result for result in results if isinstance(result, BaseException)]
    if errors:
        raise next((error for error in errors if isinstance(error, OutcomeUnknown)), errors[0])


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
