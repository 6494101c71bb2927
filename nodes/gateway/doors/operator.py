"""The operator's door: who is in the cluster and who owns what, drain a node, rebalance; what runs, and kill it.

The routes are put together in `nodes.gateway.assembly`; `runnel cluster` and `runnel queries` are their clients.
Works over `nodes.status.ClusterControl` and `QueryControl`, so every kind of node can serve it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from cluster.members import Kind
from nodes.gateway.faults import BadRequest
from nodes.gateway.http import JSON_TYPE, Request, Response
from nodes.status import ShardsMoved

if TYPE_CHECKING:
    from nodes.status import ClusterControl, QueryControl

ALONE: Final = (
    "this server is one process by itself (`runnel start`): it has no other nodes to show, drain or rebalance; "
    "a cluster is made of `runnel gateway`, `runnel ingest` and `runnel query` nodes"
)


class OperatorDoor:
    """Handlers over the cluster's control; ``control`` None is a process that is all of its cluster."""

    def __init__(self, control: ClusterControl | None, queries: QueryControl) -> None:
        self._control = control
        self._queries = queries

    async def cluster(self, _request: Request) -> Response:
        """GET /api/runnel/cluster."""
        if self._control is None:
            return _refuse(404, ALONE)
        return _answer(self._control.cluster_status())

    async def drain(self, request: Request) -> Response:
        """POST /api/runnel/cluster/drain?node=NAME: answers when its shards have other owners."""
        if self._control is None:
            return _refuse(404, ALONE)
        name = dict(request.query()).get("node", "")
        if not name:
            raise BadRequest("say which node: /api/runnel/cluster/drain?node=NAME")
        kinds = {member.name: member.kind for member in self._control.cluster_status().members}
        if name not in kinds:
            return _refuse(404, f"no node of this cluster is called {name!r}; there are {', '.join(sorted(kinds))}")
        if kinds[name] != Kind.INGEST.value:
            return _refuse(409, f"{name} is a {kinds[name]} node; only ingest nodes own shards, so just stop it")
        return _answer(ShardsMoved(moved=await self._control.drain(name)))

    async def rebalance(self, _request: Request) -> Response:
        """POST /api/runnel/cluster/rebalance."""
        if self._control is None:
            return _refuse(404, ALONE)
        return _answer(ShardsMoved(moved=await self._control.rebalance()))

    async def queries(self, _request: Request) -> Response:
        """GET /api/runnel/queries: a list of `nodes.status.QueryStatus`."""
        return _answer(await self._queries.queries())

    async def kill(self, request: Request) -> Response:
        """POST /api/runnel/queries/kill?id=ID: answers what the query was."""
        wanted = dict(request.query()).get("id", "")
        if not wanted:
            raise BadRequest("say which query: /api/runnel/queries/kill?id=ID")
        return _answer(await self._queries.kill(wanted))


def _answer(value: Any) -> Response:
    return Response(200, [JSON_TYPE], msgspec.json.encode(value))


def _refuse(status: int, message: str) -> Response:
    return Response(status, [JSON_TYPE], msgspec.json.encode({"error": message}))
