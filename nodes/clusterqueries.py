"""The queries of a cluster: those of every query node that gossip knows, listed and killed from any node.

`nodes.gateway.remote`, `nodes.doorless` and, for ``system.queries``, `nodes.query.node` stand on it. A query node is
asked once, for a bounded time; one that does not answer is shown as one row of phase unknown, so nothing is missing
in silence.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any, Final, TypeVar

import grpc
import msgspec
import structlog

from cluster.errors import ClusterError, MalformedMessage, PeerUnavailable
from cluster.members import Kind
from engine.errors import NoSuchQuery
from nodes.rpcerrors import read_error
from nodes.status import QueryStatus
from protos import internal_pb2, internal_pb2_grpc
from storage.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nodes.localqueries import LocalQueries
    from nodes.member import ClusterMember

T = TypeVar("T")

ASK_SECONDS_MAX: Final = 2.0
"""One answer of a query node about its queries."""

log = structlog.get_logger(__name__)


class ClusterQueries:
    """`nodes.status.QueryControl` over all query nodes. ``own`` is set on a query node: it is not asked over gRPC."""

    def __init__(self, member: ClusterMember) -> None:
        self.own: LocalQueries | None = None
        self._member = member

    async def queries(self) -> Sequence[QueryStatus]:
        """Those of every query node; of one that does not answer a row that says so."""
        found = await asyncio.gather(*(self._list(name) for name in self._names()))
        return list(itertools.chain.from_iterable(found))

    async def kill(self, query_id: str) -> QueryStatus:
        """Only one node can have it: all are asked. Raises NoSuchQuery, or PeerUnavailable if one was silent."""
        names = self._names()
        found = await asyncio.gather(*(self._kill(name, query_id) for name in names), return_exceptions=True)
        silent = []
        for name, answer in zip(names, found, strict=True):
            if isinstance(answer, QueryStatus):
                return answer
            if isinstance(answer, (ClusterError, StorageError)):
                silent.append(name)
            elif not isinstance(answer, NoSuchQuery):
                raise answer
        if silent:
            raise PeerUnavailable(
                f"no query {query_id[:100]!r} on the nodes that answer; {', '.join(silent)} did not answer: try again"
            )
        raise NoSuchQuery(f"no query with the id {query_id[:100]!r} waits or runs: see system.queries")

    def _names(self) -> list[str]:
        return sorted(member.name for member in self._member.usable(Kind.QUERY))

    async def _list(self, name: str) -> Sequence[QueryStatus]:
        if self.own is not None and name == self._member.name:
            return self.own.listed()
        request = internal_pb2.QueriesRequest()
        try:
            return await self._ask(name, lambda stub: stub.Queries(request, timeout=ASK_SECONDS_MAX), list[QueryStatus])
        except (ClusterError, StorageError) as error:
            log.info("a query node did not say what runs there", peer=name, reason=str(error))
            return [QueryStatus(node=name)]

    async def _kill(self, name: str, query_id: str) -> QueryStatus:
        if self.own is not None and name == self._member.name:
            return await self.own.kill(query_id)
        request = internal_pb2.KillRequest(id=query_id)
        return await self._ask(name, lambda stub: stub.Kill(request, timeout=ASK_SECONDS_MAX), QueryStatus)

    async def _ask(self, name: str, call: Callable[[internal_pb2_grpc.QueryAsyncStub], Any], kind: type[T]) -> T:
        try:
            reply = await call(self._member.channel(name).stub(internal_pb2_grpc.QueryStub))
            return msgspec.json.decode(reply.json, type=kind)
        except grpc.aio.AioRpcError as failure:
            raise read_error(failure, name) from failure
        except msgspec.DecodeError as error:
            raise MalformedMessage(f"{name} answered something else than queries: {error}") from error
