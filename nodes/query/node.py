"""The query node's parts: engine, snapshots, gRPC service; and its life within `nodes.node`.

It serves complete answers while an owner is down (LOG L15), follows the Catalog by listing the store, and loads no
line-protocol parser.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Self, TypeVar

import msgspec

from cluster.members import Kind
from engine.scan import SystemTable
from nodes.clustercontrol import MemberControl
from nodes.doorless import DoorlessBackend
from nodes.engineparts import file_cache_status, new_engine
from nodes.gateway.assembly import open_operator
from nodes.grpcserver import GrpcServer, GrpcService
from nodes.localqueries import LocalQueries
from nodes.member import ClusterMember
from nodes.node import NodeParts
from nodes.query.service import QueryService
from nodes.query.source import ShardSource
from nodes.rayhead import new_workers
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
from protos import internal_pb2_grpc
from storage.errors import NoSuchDatabase

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from engine.engine import Engine
    from engine.running import Origin
    from engine.stream import QueryStream
    from nodes.node import NodeContext
    from nodes.status import BackendStatus
    from storage.catalogstate import CatalogSnapshot
    from storage.schema import PartitionSnapshot, Table, TableSnapshot

T = TypeVar("T")

SYSTEM_SECONDS_MAX = 30.0
"""How long the rows of a system table may take."""


class QueryNode(DoorlessBackend):
    """Enter it to join and serve; leave it to let everything go."""

    def __init__(self, context: NodeContext, control: MemberControl) -> None:
        self._control = control
        self._settings = context.settings
        self.service = QueryService(self)
        self.member = ClusterMember(context.settings, Kind.QUERY, context.fail, lambda: float(self.service.running))
        super().__init__(self.member)
        self._budgets = context.budgets
        self.local_queries: LocalQueries
        self._engine: Engine
        self._source: ShardSource
        self._server: GrpcServer
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self.member)
            self._source = ShardSource(self.member, self._budgets.memtable_bytes // 2)
            workers = new_workers(self._settings)
            self._engine = new_engine(self._settings, self._budgets, self.member.store.url, workers)
            stack.push_async_callback(self._engine.close)
            self.local_queries = LocalQueries(self._engine.running, self.member.name)
            self.cluster_queries.own = self.local_queries
            service = GrpcService("runnel.v1.Query", self.service, internal_pb2_grpc.add_QueryServicer_to_server)
            self._server = await stack.enter_async_context(self.new_server([service]))
            await self.member.join(self.listening(self._server))
            self._control.fill(self.member, self.numbers)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.aclose()

    def numbers(self) -> dict[str, float]:
        """For metrics, by the names of `nodes.gateway.clustermetrics`."""
        return {
            "runnel_tails_total": self._source.tails,
            "runnel_store_reads_total": self._source.store_reads,
        }

    def status(self) -> BackendStatus:
        """What it holds, without I/O."""
        running, waiting = self.local_queries.counts()
        return msgspec.structs.replace(
            super().status(),
            queries_running=running,
            queries_waiting=waiting,
            file_cache=file_cache_status(self._engine),
        )

    async def drain(self) -> None:
        """Take no new statement; end those under way."""
        await self.member.leave()
        await self._server.drain(self._settings.node.drain_seconds)

    async def execute(
        self,
        database: str,
        statement: str,
        params: Mapping[str, object],
        timeout_seconds: float | None,
        origin: Origin,
        may_write: bool,
    ) -> QueryStream:
        """Plan and start one statement, with the Catalog proved current (L29)."""
        catalog = await self.refresh()
        if catalog.database(database) is None:
            raise NoSuchDatabase(f"database not found: {database}")
        return await self._engine.query(
            statement,
            database=database,
            revision=catalog.revision,
            tables=catalog.tables(database),
            source=self._source,
            params=params,
            timeout_seconds=timeout_seconds,
            system=self._system_tables(catalog, database),
            origin=origin,
            may_write=may_write,
            table_by_id=catalog.tables_by_id.get,
        )

    def _system_tables(self, catalog: CatalogSnapshot, database: str) -> list[SystemTable]:
        loop = asyncio.get_running_loop()

        async def snapshots() -> Sequence[TableSnapshot]:
            return await self._source.snapshot(catalog.tables(database))

        async def files() -> list[tuple[Table, PartitionSnapshot]]:
            return [(snapshot.table, part) for snapshot in await snapshots() for part in snapshot.partitions]

        def wait(asking: Coroutine[Any, Any, T]) -> T:
            """In the planner's thread: other nodes are asked from the event loop."""
            return asyncio.run_coroutine_threadsafe(asking, loop).result(SYSTEM_SECONDS_MAX)

        return [
            SystemTable("parquet_files", PARQUET_FILES_SCHEMA, lambda: parquet_files(wait(files()))),
            SystemTable("queries", QUERIES_SCHEMA, lambda: queries(wait(self.cluster_queries.queries()))),
            SystemTable("materialized_views", VIEWS_SCHEMA, lambda: materialized_views(catalog, database)),
            SystemTable("retention", RETENTION_SCHEMA, lambda: retention(catalog.names[database], wait(snapshots()))),
        ]


def parts() -> NodeParts:
    """What `nodes.node` needs for `runnel query`."""
    control = MemberControl()
    return NodeParts(open_operator, lambda context: QueryNode(context, control), control)
