"""The Backend of a node without doors: ingest and query nodes serve health, metrics and status, and no clients.

It answers what the status door asks. A write or statement never arrives here, since there are no routes for them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from nodes.clusterqueries import ClusterQueries
from nodes.grpcserver import GrpcServer
from nodes.node import version
from nodes.settings_kinds import Address
from nodes.status import BackendStatus
from storage.errors import ShardClosed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from nodes.backend import Batch, Change, Principal, QueryRequest
    from nodes.grpcserver import GrpcService
    from nodes.member import ClusterMember
    from nodes.status import QueryStatus
    from storage.catalogstate import CatalogSnapshot


class DoorlessBackend:
    """Base of the kinds that serve other nodes only."""

    def __init__(self, member: ClusterMember) -> None:
        self._of = member
        self.cluster_queries = ClusterQueries(member)

    @property
    def catalog(self) -> CatalogSnapshot:
        return self._of.catalog.current

    @property
    def store_id(self) -> str:
        return str(self._of.identity.id)

    @property
    def listen(self) -> Mapping[str, str]:
        """Door -> HOST:PORT, beside HTTP."""
        return self._of.addresses

    async def refresh(self) -> CatalogSnapshot:
        """The Catalog, proved to be the newest (L29)."""
        return await self._of.catalog.refresh()

    async def write(self, batches: Sequence[Batch], principal: Principal, *, idempotency_key: str = "") -> None:
        self._refuse()

    async def alter(self, changes: Sequence[Change], principal: Principal) -> NoReturn:
        self._refuse()

    async def query(self, request: QueryRequest, principal: Principal) -> NoReturn:
        self._refuse()

    async def query_text(self, request: QueryRequest, format: str, principal: Principal) -> NoReturn:
        self._refuse()

    async def queries(self) -> Sequence[QueryStatus]:
        return await self.cluster_queries.queries()

    async def kill(self, query_id: str) -> QueryStatus:
        return await self.cluster_queries.kill(query_id)

    async def checkpoint(self) -> None:
        """Nothing is held here that a checkpoint could write."""

    async def compact(self) -> int:
        """No shard is owned here: to say that nothing is worth a merge would be misleading."""
        raise self._of.owns_no_shards()

    def new_server(self, services: Sequence[GrpcService]) -> GrpcServer:
        """The gRPC server for other nodes, not entered yet."""
        settings = self._of.settings
        address = settings.grpc.address
        return GrpcServer(
            address.host, address.port, services, cluster=settings.cluster.name, version=version(), tls=self._of.tls
        )

    def listening(self, server: GrpcServer) -> dict[str, str]:
        """What gossip tells the others: where this node's gRPC is reached."""
        return {"grpc": str(self._of.settings.cluster.reached_at(Address(*server.address)))}

    def status(self) -> BackendStatus:
        """What it holds, without I/O."""
        return BackendStatus(store_id=self.store_id, catalog_revision=self.catalog.revision)

    def _refuse(self) -> NoReturn:
        raise ShardClosed(f"this is a node of kind {self._of.kind.value}: ask a gateway")
