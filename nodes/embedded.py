"""The Backend of one process: it owns the Catalog and every shard, and runs queries itself.

`nodes.node` enters it; doors see only `nodes.backend.Backend`. It is one node of a cluster with the network
taken out: the same Logs, write ids, proofs and snapshots, and a plain call where a cluster has gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import uuid
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final, Self

import structlog

from engine.scan import SystemTable
from nodes.appender import ANSWER_SECONDS_MAX, SILENT, Appender
from nodes.batchparts import parts_of
from nodes.compaction import new_compactor
from nodes.engineparts import file_cache_status, new_engine
from nodes.housekeeping import Housekeeper
from nodes.idempotency import KeyedIds
from nodes.localqueries import LocalQueries, origin
from nodes.outcomes import all_or_worst
from nodes.ownstatements import done_here
from nodes.rayhead import merges_on_ray, new_workers
from nodes.resulttext import result_text
from nodes.rowchanges import carry_out
from nodes.shardparts import log_status, shard_limits
from nodes.status import BackendStatus, DatabaseStatus, LogStatus, TableStatus
from nodes.storeoptions import s3_options
from nodes.systemtables import (
    PARQUET_FILES_SCHEMA,
    QUERIES_SCHEMA,
    RETENTION_SCHEMA,
    VIEWS_SCHEMA,
    materialized_views,
    parquet_files,
    queries,
    retention,
)
from nodes.viewkeeper import ViewKeeper
from storage.budget import MemoryBudget
from storage.catalog import Catalog
from storage.catalogstate import CatalogLimits, CatalogSnapshot
from storage.cutoffs import table_snapshot
from storage.errors import (
    LogDamaged,
    NoSuchDatabase,
    NoSuchTable,
    OutcomeUnknown,
    ShardClosed,
    StorageError,
    StoreUnavailable,
    TableDropping,
)
from storage.frames import WriteId
from storage.log import Identity
from storage.objects import open_store, prove_store
from storage.shard import Append, Shard
from storage.store import CATALOG_LOG, open_identity

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence

    import pyarrow as pa

    from engine.engine import Engine
    from engine.stream import QueryStream
    from nodes.backend import Batch, Change, Principal, QueryRequest, QueryResult
    from nodes.compaction import Compactor
    from nodes.settings_model import Budgets, Settings
    from nodes.status import QueryStatus
    from storage.objects import ObjectStore
    from storage.schema import Partition, PartitionSnapshot, Table, TableSnapshot

IO_THREADS: Final = 16
"""Threads for the object store: one create for each Log may be under way, beside reads and checkpoints."""
WRITE_ID_KIND: Final = 1
"""Ids of a gateway's writes: remembered down to the horizon (FORMAT F14)."""
"""How often files that nothing names are looked for (LOG L20)."""

log = structlog.get_logger(__name__)


class EmbeddedBackend:
    """Enter it to open the store, replay and serve; leave it to let everything go."""

    def __init__(self, settings: Settings, budgets: Budgets, fail: Callable[[BaseException], None]) -> None:
        self._settings = settings
        self._fail = fail
        self._budget = MemoryBudget(budgets.memtable_bytes)
        self._budgets = budgets
        self._writer = uuid.uuid4().bytes
        self._writes = 0
        self._shards: dict[int, Shard] = {}
        self._closed_shards: dict[int, str] = {}
        self._stack = contextlib.AsyncExitStack()
        self._store: ObjectStore
        self._appender: Appender
        self._catalog: Catalog
        self._compactor: Compactor
        self._housekeeper: Housekeeper
        self._engine: Engine
        self._queries: LocalQueries
        self._views: ViewKeeper
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
        self._appender = Appender(self._store, self._budget, self._open_ones)
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
        workers = new_workers(settings)
        self._engine = new_engine(settings, self._budgets, self._store.url, workers)
        self._queries = LocalQueries(self._engine.running, settings.node_name)
        stack.push_async_callback(self._engine.close)
        self._housekeeper = Housekeeper(self._open_ones, self.refresh)
        self._start(stack, self._housekeeper.run())
        self._compactor = new_compactor(
            settings, self._budgets, self._store, self._budget, self._open_ones,
            workers if merges_on_ray(settings) else None,
        )  # fmt: skip
        stack.push_async_callback(self._compactor.aclose)
        self._start(stack, self._compactor.run())
        self._views = ViewKeeper(self, settings.views.refresh_every)
        self._start(stack, self._views.run())

    async def _open_shards(
        self, stack: contextlib.AsyncExitStack, store_id: bytes, node: bytes, executor: ThreadPoolExecutor
    ) -> None:
        limits = shard_limits(self._settings, self._budget, len(self._catalog.current.logs))
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
            raise StoreUnavailable(f"the Catalog: {SILENT}; try again") from None

    async def alter(self, changes: Sequence[Change], principal: Principal) -> CatalogSnapshot:
        """Apply changes; durable when it returns (L4)."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS_MAX):
                return (await self._catalog.carry_out(changes, self._drop)).catalog
        except TimeoutError:
            raise OutcomeUnknown(f"the Catalog: {SILENT}; the change may stand") from None

    async def _drop(self, log_id: int, table: Table) -> None:
        """L31: the drop record in one Log."""
        await self._shard(log_id).drop(table.id, table.dropping)

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        """Split by partition and append to each Log, at once and atomic per shard (L8, L17)."""
        keyed = KeyedIds(idempotency_key) if idempotency_key else None
        parts: dict[int, list[Append]] = defaultdict(list)
        for batch in batches:
            name = partial(self._write_id, batch.table, keyed)
            for log_id, part in parts_of(batch, name, lambda log_id: self._shards[log_id].state.position):
                parts[log_id].append(part)
        try:
            await all_or_worst([self._append_to(log_id, appends) for log_id, appends in parts.items()])
        except NoSuchTable:  # L31: a drop is under way; when it is done the name is free, and the door writes anew
            await self._catalog.finish_drops(self._drop, {batch.table.id for batch in batches})
            raise
        self._appender.relieve()

    def _write_id(self, table: Table, keyed: KeyedIds | None, partition: Partition) -> WriteId:
        return self._next_id() if keyed is None else keyed.of(table.id, partition.id)

    def _next_id(self) -> WriteId:
        self._writes += 1
        return WriteId(WRITE_ID_KIND, self._writer, 0, self._writes, 1)

    async def _append_to(self, log_id: int, appends: Sequence[Append]) -> None:
        """Append to one Log within a bounded time. A closed shard refuses its own part only (L3)."""
        shard = self._shard(log_id)
        incoming = sum(append.rows.nbytes for append in appends)
        try:
            await self._appender.append(shard, incoming, lambda: shard.append(appends))
        except NoSuchTable as error:
            gone = frozenset(a.table.id for a in appends if a.table.id in shard.state.drops)
            rest = [a for a in appends if a.table.id not in gone]
            if gone and rest:  # nothing of this part was written, and the rows of the other tables still can be
                await self._append_to(log_id, rest)
            error.tables = gone
            raise

    async def query(self, request: QueryRequest, principal: Principal) -> QueryResult:
        """Plan and start one statement over one snapshot of each table (L14); or carry out what changes something."""
        done = await done_here(request, self, self._queries, principal, self._settings.copy_dir)
        if done is not None:
            return done
        stream = await self._run(request)
        if stream.change is None:
            return stream
        return await carry_out(self, request, stream, self._run, principal)

    async def _run(self, request: QueryRequest) -> QueryStream:
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
            origin=origin(request),
            may_write=request.may_write,
            table_by_id=catalog.tables_by_id.get,
        )

    async def query_text(self, request: QueryRequest, format: str, principal: Principal) -> AsyncGenerator[bytes, None]:
        """The result's bytes as DataFusion writes them."""
        return result_text(format, await self.query(request, principal))

    async def queries(self) -> Sequence[QueryStatus]:
        return await self._queries.queries()

    async def kill(self, query_id: str) -> QueryStatus:
        return await self._queries.kill(query_id)

    # -- SnapshotSource ----------------------------------------------------------------------------------

    async def snapshot(self, tables: Sequence[Table]) -> Sequence[TableSnapshot]:
        """One snapshot per table, each partition proved current (L13, L14)."""
        shards = {p.log_id: self._shard(p.log_id) for table in tables for p in table.partitions}
        catalog = self._catalog.current
        await asyncio.gather(*(shard.cutoffs.record(catalog, _in_log(tables, i)) for i, shard in shards.items()))
        await asyncio.gather(*(shard.prove() for shard in shards.values()))
        return [self._table_snapshot(table, shards) for table in tables]

    def _table_snapshot(self, table: Table, shards: dict[int, Shard]) -> TableSnapshot:
        newest = self._catalog.table_by_id(table.id) or table
        logs = [shards[log_id] for log_id in sorted({p.log_id for p in newest.partitions}) if log_id in shards]
        found = [(shard.snapshot(newest), shard.cutoffs.known()) for shard in logs]
        return table_snapshot(newest, self._catalog.current, found)

    def _system_tables(self, catalog: CatalogSnapshot, database: str) -> list[SystemTable]:
        def files() -> list[tuple[Table, PartitionSnapshot]]:
            return [
                (table, part)
                for table in catalog.tables(database)
                for shard in self._open_ones()
                for part in shard.snapshot(table)
            ]

        def kept() -> pa.Table:
            shards = {shard.log_id: shard for shard in self._open_ones()}
            tables = [self._table_snapshot(table, shards) for table in catalog.tables(database)]
            return retention(catalog.names[database], tables)

        return [
            SystemTable("parquet_files", PARQUET_FILES_SCHEMA, lambda: parquet_files(files())),
            SystemTable("queries", QUERIES_SCHEMA, lambda: queries(self._queries.listed())),
            SystemTable("materialized_views", VIEWS_SCHEMA, lambda: materialized_views(catalog, database)),
            SystemTable("retention", RETENTION_SCHEMA, kept),
        ]

    # -- for the node ------------------------------------------------------------------------------------

    @property
    def listen(self) -> Mapping[str, str]:
        """Nothing beside HTTP."""
        return {}

    async def drain(self) -> None:
        """One process hands nothing over: a checkpoint makes the next start fast."""
        await self._compactor.aclose()
        await self.checkpoint()

    async def checkpoint(self) -> None:
        """Checkpoint every shard and the Catalog."""
        await all_or_worst([shard.checkpoint() for shard in self._open_ones()])
        await self._catalog.shutdown()

    async def compact(self) -> int:
        """Merge the files of every shard that are worth it, now; how many merges that took."""
        return await self._compactor.compact()

    def status(self) -> BackendStatus:
        """What this process holds, without I/O."""
        catalog = self._catalog.current
        running, waiting = self._queries.counts()
        return BackendStatus(
            store_id=self.store_id,
            catalog_revision=catalog.revision,
            memtable_bytes=self._budget.used,
            queries_running=running,
            queries_waiting=waiting,
            databases=[
                DatabaseStatus(
                    name=d.name,
                    retention_ns=d.retention_ns,
                    retention_bytes=d.retention_bytes,
                    tables=[self._table_status(t) for t in catalog.tables(d.name)],
                )
                for d in catalog.databases()
            ],
            logs=[self._catalog_status(), *(log_status(shard) for shard in self._shards.values())],
            compaction=self._compactor.status(self._housekeeper.files_gone),
            file_cache=file_cache_status(self._engine),
            views=self._views.counters,
        )

    def _table_status(self, table: Table) -> TableStatus:
        parts = [part for shard in self._open_ones() for part in shard.snapshot(table)]
        files = [file for part in parts for file in part.files]
        tail = sum(batch.rows.num_rows for part in parts for batch in part.tail)
        return TableStatus(
            name=table.name,
            columns=len(table.columns),
            partitions=len(table.partitions),
            retention_ns=table.retention_ns,
            retention_bytes=table.retention_bytes,
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


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _in_log(tables: Sequence[Table], log_id: int) -> list[Table]:
    return [table for table in tables if any(p.log_id == log_id for p in table.partitions)]
